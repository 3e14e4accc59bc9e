"""Everything that only a GPU can show, in one command and under ten minutes:

    python -m tinyqwen.bench.gpu_check                  all stages, one after the other
    python -m tinyqwen.bench.gpu_check kernels decode   some of them

What matters most comes first: numbers of kernels that are wrong would be worth nothing.

    stage      limit   expected
    doctor      15 s        4 s   what this machine has
    kernels     70 s       35 s   every kernel at a real model's sizes against its definition; compiles them (12 s)
    ceilings    25 s        8 s   how fast memory is read, how fast products are
    decode     120 s       60 s   tokens a second of each size, prompts and 16 sequences too, beside the ceilings
    tokens      65 s       45 s   256 tokens, greedily, of the 0.5B's shape: the same as the cpu backend's?
    tests      100 s       70 s   the tests that have so far run on an emulated device, on this one
    graphs      15 s        5 s   what a launch costs alone and in a graph
    peers      120 s      100 s   transformers, eager and compiled, where it is installed
    sanitizer   60 s       50 s   kernels under compute-sanitizer, where that is installed: bounds, races

What is expected is arithmetic for an H200 and 16 cores; nobody has measured it. Nothing is downloaded.

Each stage is a process of its own with a time limit: one that fails, or takes the device down with it, says why, and
the others run. What it has found is in the results file all the time, and as text in one beside it, so that who is cut
off in the middle has it; start the command again, and it goes on with the stages that are not done.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import backends
from tinyqwen.bench import gpu, gpu_kernels
from tinyqwen.bench.found import keep, kept, words

RESULTS = Path(__file__).parent / "results"
LIMITS = {"doctor": 15, "kernels": 70, "ceilings": 25, "decode": 120, "tokens": 65, "tests": 100, "graphs": 15,
          "peers": 120, "sanitizer": 60}  # fmt: skip
TESTS = ("tests/tinyqwen/test_recorded.py", "tests/tinyqwen/test_model.py", "tests/tinyqwen/test_kv_cache.py",
         "tests/test_goldens.py", "tests/tinyqwen/blocks")  # fmt: skip
MODELS = (("0.5B", "bf16"), ("0.5B", "int8"), ("0.5B", "int4"), ("1.5B", "bf16"), ("7B", "bf16"), ("7B", "int4"),
          ("57B-A14B", "bf16"))  # fmt: skip
TOKENS = 256  # that both backends say
Found = dict[str, Any]


# ---- the stages: each yields what it has found so far ----


def doctor() -> Iterator[Found]:
    from tinyqwen.cli.doctor import examine

    yield examine()


def kernels() -> Iterator[Found]:
    """Those of the 0.5B, and attention as the 7B has it: 128 numbers a head."""
    from tinyqwen.sizes import SIZES

    backend: Any = backends.get("cuda")
    rows: list[Found] = []
    for size, some in (("0.5B", gpu_kernels.cases), ("7B", gpu_kernels.attentions)):
        for row in gpu_kernels.compared(backend, some(SIZES[size].config())):
            rows.append({"model": size, **row})
            wrong = [row for row in rows if not row["fine"]]
            yield {"compared": len(rows), **({"failed": wrong} if wrong else {}), "rows": rows}


def tests() -> Iterator[Found]:
    """The suite on the real device: those of its tests whose backend is `cuda-device`."""
    places = [place for place in TESTS if Path(place).exists()]
    if not places:
        yield {"skipped": "no tests here: run this in a clone of the repository"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda-device", "--tb=short", "--maxfail=20", *places]
    yield checked(process(command, LIMITS["tests"] - 5))


def sanitizer() -> Iterator[Found]:
    tool, found = shutil.which("compute-sanitizer"), {}
    if not tool:
        yield {"skipped": "compute-sanitizer is not installed; it comes with the CUDA toolkit"}
        return
    few = [sys.executable, "-m", "tinyqwen.bench.gpu_kernels"]
    for name in ("memcheck", "racecheck"):
        found[name] = checked(process([tool, "--tool", name, "--error-exitcode", "9", *few], LIMITS["sanitizer"] // 2))
        yield found


def ceilings() -> Iterator[Found]:
    yield gpu.ceilings(backends.get("cuda"))._asdict()


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
    from tinyqwen.sizes import SIZES

    backend: Any = backends.get("cuda")
    limits, rows = gpu.ceilings(backend), []
    for size, format in MODELS:
        try:
            for row in gpu.measure(backend, size, SIZES[size].config(), format, limits, report=say, together=(16,)):
                rows.append(row)
                yield {"rows": rows}
        except Exception as error:  # the others may do
            rows.append({"model": size, "format": format, "failed": f"{type(error).__name__}: {error}"[:500]})
            yield {"rows": rows}
        backend.xp.get_default_memory_pool().free_all_blocks()


def tokens() -> Iterator[Found]:
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
        running = Running(list(range(1, 17)), KVCache(backend, config), Sampling(), 999, max_new_tokens=TOKENS)
        for _ in generate(backend, config, weights, [running]):
            pass
        said[name] = running.ids
    same = next((n for n, (one, other) in enumerate(zip(said["cpu"], said["cuda"])) if one != other), None)
    if same is None:
        yield {"same": TOKENS}
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
    "doctor": doctor, "kernels": kernels, "ceilings": ceilings, "decode": decode, "tokens": tokens, "tests": tests,
    "graphs": graphs, "peers": peers, "sanitizer": sanitizer,
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


def run(stage: str, file: Path) -> None:
    """One stage in a process of its own; what it had found when its time was over counts."""
    keep(file, stage, {"unfinished": True})
    start = time.perf_counter()
    command = [sys.executable, "-m", "tinyqwen.bench.gpu_check", stage, "--inside", "--out", str(file)]
    done = process(command, LIMITS[stage])
    found = kept(file)[stage]
    found.pop("unfinished", None)
    if done["code"] != 0:
        found["failed"] = done["output"].strip()[-1500:]
    keep(file, stage, {**found, "seconds": round(time.perf_counter() - start, 1)})


def inside(stage: str, file: Path) -> None:
    """The stage itself: what it has found is in the file all the time."""
    for found in STAGES[stage]():
        keep(file, stage, {**found, "unfinished": True})


def failed(found: Any) -> bool:
    """Whether `failed` is said anywhere in there."""
    if isinstance(found, list):
        return any(map(failed, found))
    return isinstance(found, dict) and ("failed" in found or any(map(failed, found.values())))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all of them")
    parser.add_argument("--out", type=Path, help="the results file (default: gpu-DATE.json beside the other results)")
    parser.add_argument("--again", action="store_true", help="run stages that have results already, too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if strangers := [stage for stage in given.stages if stage not in STAGES]:
        parser.error(f"no stage {strangers[0]!r}; there are {', '.join(STAGES)}")
    file = (given.out or RESULTS / f"gpu-{datetime.date.today()}.json").with_suffix(".json")
    if given.inside:
        inside(given.stages[0], file)
        return 0
    name, why = backends.choose()
    if name != "cuda":
        print(f"gpu_check: {why or 'no NVIDIA driver on this machine'}", file=sys.stderr)
        return 1
    for stage in given.stages or STAGES:
        before = kept(file).get(stage)
        if before and not failed(before) and "unfinished" not in before and not given.again:
            say(f"{stage}: there already")
            continue
        say(f"{stage}: up to {LIMITS[stage]} s")
        run(stage, file)
        found = kept(file)[stage]
        say(
            "\n".join(
                words({stage: {name: value for name, value in found.items() if stage != "kernels" or name != "rows"}})
            )
        )
        say(f"{stage}: {'FAILED' if failed(found) else 'done'} in {found['seconds']} s")
    print(file)
    return 1 if failed(kept(file)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
