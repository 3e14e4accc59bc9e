"""Everything that only a GPU can show, in one command and under ten minutes:

    python -m tinyqwen.bench.gpu_check              all stages, one after the other
    python -m tinyqwen.bench.gpu_check tests decode    some of them

    doctor      what this machine has
    tests       the tests that have so far run on an emulated device, on this one
    sanitizer   kernels under compute-sanitizer, where that is installed: bounds, races
    ceilings    how fast memory is read, how fast products are
    graphs      what a launch costs alone and in a graph
    decode      tokens a second of each size, prompts too, beside the ceilings
    tokens      256 tokens, greedily, of the 0.5B's shape: the same as the cpu backend's?
    peers       transformers, eager and compiled, where it is installed

Each stage is a process of its own with a time limit, and what it found is in the results file before the next begins:
start the command again, and it goes on where it stopped. One that fails says why, and the others run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import backends

RESULTS = Path(__file__).parent / "results"
LIMITS = {"doctor": 20, "tests": 150, "sanitizer": 60, "ceilings": 30, "graphs": 20, "decode": 140, "tokens": 50,
          "peers": 120}  # fmt: skip
TESTS = ("tests/tinyqwen/test_recorded.py", "tests/tinyqwen/blocks", "tests/test_goldens.py",
         "tests/tinyqwen/test_model.py", "tests/backends/cuda", "tests/tinyqwen/test_kv_cache.py")  # fmt: skip
MODELS = (("0.5B", "bf16"), ("0.5B", "int8"), ("0.5B", "int4"), ("1.5B", "bf16"), ("7B", "bf16"), ("7B", "int4"),
          ("57B-A14B", "bf16"))  # fmt: skip
Found = dict[str, Any]


# ---- the stages: each yields what it has found so far ----


def doctor() -> Iterator[Found]:
    from tinyqwen.cli.doctor import examine

    yield examine()


def tests() -> Iterator[Found]:
    """The suite on the real device: those of its tests whose backend is `cuda-device`."""
    places = [place for place in TESTS if Path(place).exists()]
    if not places:
        yield {"skipped": "no tests here: run this in a clone of the repository"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda-device", "--tb=short", *places]
    yield checked(process(command, LIMITS["tests"] - 5))


def sanitizer() -> Iterator[Found]:
    tool, found = shutil.which("compute-sanitizer"), {}
    if not tool:
        yield {"skipped": "compute-sanitizer is not installed; it comes with the CUDA toolkit"}
        return
    few = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "cuda-device and greedy and (fused or moe)", TESTS[0]]
    for name in ("memcheck", "racecheck"):
        found[name] = checked(process([tool, "--tool", name, "--error-exitcode", "9", *few], LIMITS["sanitizer"] // 2))
        yield found


def ceilings() -> Iterator[Found]:
    from tinyqwen.bench.gpu import ceilings as measured

    yield measured(backends.get("cuda"))._asdict()


def graphs() -> Iterator[Found]:
    """Microseconds of a launch: from Python one by one, and in a graph of a hundred."""
    from backends.cuda.ceilings import seconds

    backend: Any = backends.get("cuda")
    data, out = backend.xp.zeros(4, np.uint32), backend.xp.zeros(1, np.uint32)

    def one() -> None:
        backend.launch("read_kernel", 1, 32, (data, np.uint64(1), np.uint32(1), out))

    def hundred() -> None:
        for _ in range(100):
            one()

    yield {
        "a launch from Python, us": 1e4 * seconds(backend, hundred, 20),
        "a launch in a graph, us": 1e4 * seconds(backend, backend.record(hundred).replay, 20),
        "a graph of one launch, us": 1e6 * seconds(backend, backend.record(one).replay, 200),
    }


def decode() -> Iterator[Found]:
    from tinyqwen.bench import gpu
    from tinyqwen.sizes import SIZES

    backend: Any = backends.get("cuda")
    limits, rows = gpu.ceilings(backend), []
    for size, format in MODELS:
        for row in gpu.measure(backend, size, SIZES[size].config(), format, limits, report=say):
            rows.append(row)
            yield {"rows": rows}
        backend.xp.get_default_memory_pool().free_all_blocks()


def tokens(count: int = 256) -> Iterator[Found]:
    """Greedy tokens of random weights on both backends; where they part, how near the tie was."""
    from tinyqwen.checkpoint.upload import upload
    from tinyqwen.generate import Running, generate
    from tinyqwen.kv_cache import BFLOAT16, KVCache
    from tinyqwen.model import forward
    from tinyqwen.sampling import Sampling
    from tinyqwen.sizes import SIZES
    from tinyqwen.step import make_step
    from tinyqwen.weights import random_weights, tree

    config, said = SIZES["0.5B"].config(), {}
    here = tree({name: array.astype(BFLOAT16) for name, array in random_weights(config).items()})
    for name in ("cpu", "cuda"):
        backend: Any = backends.get(name)
        weights = upload(backend, here) if name == "cuda" else here
        running = Running(list(range(1, 17)), KVCache(backend, config), Sampling(), 999, max_new_tokens=count)
        for _ in generate(backend, config, weights, [running]):
            pass
        said[name] = running.ids
    same = next((n for n, (one, other) in enumerate(zip(said["cpu"], said["cuda"])) if one != other), None)
    if same is None:
        yield {"same": count}
        return
    step = make_step([(said["cpu"][:same], None)])
    logits_V = forward(backends.get("cpu"), config, here, step)[0]
    gap = float(logits_V[said["cpu"][same]] - logits_V[said["cuda"][same]])
    yield {"same": same - 16, "then the two logits are apart": gap, "and all of them": float(np.std(logits_V))}


def peers() -> Iterator[Found]:
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        yield {"skipped": f"{' and '.join(missing)} not installed: pip install torch transformers"}
        return
    found: list[dict] = []
    until = time.monotonic() + LIMITS["peers"] - 5
    for size in ("0.5B", "1.5B", "7B"):
        command = [sys.executable, "-m", "tinyqwen.bench.gpu_peers", size, "0", "128"]
        done = process(command, max(1.0, until - time.monotonic()))
        found += [json.loads(line) for line in done["output"].splitlines() if line.startswith("{")]
        if done["code"]:
            found.append({"model": size, "why": done["output"][-300:]})
        yield {"rows": found}


STAGES: dict[str, Callable[[], Iterator[Found]]] = {
    "doctor": doctor, "tests": tests, "sanitizer": sanitizer, "ceilings": ceilings, "graphs": graphs, "decode": decode,
    "tokens": tokens, "peers": peers,
}  # fmt: skip


# ---- running them ----


def process(command: list[str], seconds: float) -> Found:
    """Its exit code (None: it took too long) and the end of what it said."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
        return {"code": done.returncode, "output": done.stdout[-4000:]}
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return {"code": None, "output": f"{text[-4000:]}\nstopped after {seconds:.0f} s"}


def checked(done: Found) -> Found:
    """What a command said: its last line if all was well, else more of it and that it failed."""
    if done["code"] == 0:
        return {"passed": done["output"].strip().splitlines()[-1:]}
    return {"failed": done["output"]}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(stage: str) -> Found:
    """One stage in a process of its own; what it had found when its time was over counts."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        done = process([sys.executable, "-m", "tinyqwen.bench.gpu_check", stage, "--inside", str(file)], LIMITS[stage])
        found = json.loads(file.read_text()) if file.exists() else {}
    if done["code"] != 0:
        found["failed"] = done["output"].strip()[-1500:]
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def inside(stage: str, file: Path) -> None:
    """The stage itself: what it has found is in the file all the time."""
    for found in STAGES[stage]():
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(found))
        beside.replace(file)


def failed(found: Any) -> bool:
    """Whether `failed` is said anywhere in there."""
    return isinstance(found, dict) and ("failed" in found or any(map(failed, found.values())))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all of them")
    parser.add_argument("--out", type=Path, help="the results file (default: gpu-DATE.json beside the other results)")
    parser.add_argument("--again", action="store_true", help="run stages that have results already, too")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        inside(given.stages[0], given.inside)
        return 0
    if strangers := [stage for stage in given.stages if stage not in STAGES]:
        parser.error(f"no stage {strangers[0]!r}; there are {', '.join(STAGES)}")
    name, why = backends.choose()
    if name != "cuda":
        print(f"gpu_check: {why or 'no NVIDIA driver on this machine'}", file=sys.stderr)
        return 1
    file = given.out or RESULTS / f"gpu-{datetime.date.today()}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for stage in given.stages or STAGES:
        if stage in found and not failed(found[stage]) and not given.again:
            say(f"{stage}: there already")
            continue
        say(f"{stage}: up to {LIMITS[stage]} s")
        found[stage] = run(stage)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
        say(f"{stage}: {'FAILED' if failed(found[stage]) else 'done'} in {found[stage]['seconds']} s")
    print(file)
    return 1 if failed(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
