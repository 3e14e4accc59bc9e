"""How fast this machine runs a model, beside how fast it could: and beside others, measured in the same run.

First the machine's own limits (reading memory, multiplying matrices), then prompts and decoding, in turn, round after
round; medians, spread, and the share of what the limits allow. Models are random weights of a published shape, made
once and kept in the cache folder; nothing is downloaded. Times are only worth reading on a machine that is quiet.

  tinyqwen bench --size 0.5B
  tinyqwen bench --size 0.5B --dtype int8 --prefill 512 --decode 0 --rounds 3 --json found.json
  tinyqwen bench --size 0.5B,1.5B --against llama.cpp,openvino,transformers --results FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import backends
from tinyqwen.bench.contestants.task import Task
from tinyqwen.bench.figures import OURS, figures
from tinyqwen.bench.limits import KV_BYTES, work
from tinyqwen.bench.models import sized_model
from tinyqwen.bench.report import HEADS, Sized, facts, figure_rows, markdown, rows
from tinyqwen.bench.rounds import DISTURBED, Question, Results
from tinyqwen.bench.rounds import run as run_rounds
from tinyqwen.bench.starts import start_seconds
from tinyqwen.bench.team import MODULES, Entry, Lost, formats, groups, missing
from tinyqwen.checkpoint.hub import folder_here
from tinyqwen.checkpoint.kept import cache_folder
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.files import clear_errors, write_whole
from tinyqwen.formats import FORMATS, weight_bytes
from tinyqwen.memory import available_bytes
from tinyqwen.sizes import size_named

BESIDE = 1e9  # bytes that a contestant takes besides its weights: caches, work memory, its libraries
SHARE = 0.8  # of the memory that is free


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", metavar="SIZE,...", help="published shapes with random weights (default 0.5B)")
    parser.add_argument("--model", "-m", metavar="FOLDER", help="a model folder instead")
    parser.add_argument("--dtype", metavar="FORMAT,...", help="weight formats (default bf16,int8,int4; numpy: f32)")
    parser.add_argument(
        "--kv-dtype", dest="kv", default="bf16", choices=KV_BYTES, help="how our cache is stored (default bf16)"
    )
    parser.add_argument(
        "--backend", default="cpu", choices=[*backends.NAMES, *backends.DEVICES],
        help="of our own model (default cpu); cuda measures a GPU, with random weights and ceilings of its own",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="for everybody (default: this process's cores)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after one to warm up (default 5)")
    parser.add_argument("--prefill", default="128,512,2048", metavar="N,...", help="prompts (default 128,512,2048)")
    parser.add_argument("--decode", default="0,2048,8192", metavar="N,...", help="depths (default 0,2048,8192)")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="decoded in each round (default 32)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="sequences decoded together; 0: leave out")
    parser.add_argument("--no-start", action="store_true", help="do not time the start of the program")
    parser.add_argument("--against", metavar="PEER,...", help=f"measure these, too: {', '.join(list(MODULES)[1:])}")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON (- for standard output)")
    parser.add_argument("--results", metavar="FOLDER", help="write tables (Markdown) and numbers (JSON) there")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")


def run(arguments: argparse.Namespace) -> int:
    if arguments.backend == "cuda":
        from tinyqwen.cli.bench_gpu import run_on_gpu

        return run_on_gpu(arguments)
    names, dtypes, questions = check_flags(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = arguments.threads or cores
    models = []
    with progress(arguments.quiet) as report:
        for name, folder in folders(arguments, report):
            model = measure(arguments, name, folder, names, dtypes, questions, threads, report)
            models.append(model)
    found = facts(models, threads)
    if arguments.results:
        save(Path(arguments.results), models, found)
    if arguments.json:
        text = json.dumps(found, indent=1)
        print(text) if arguments.json == "-" else write(Path(arguments.json), text + "\n")
    if arguments.json != "-":
        show(models, found)
    if not any(model.results.rounds for model in models):
        raise TinyqwenError("nothing could be measured: " + "; ".join(
            f"{entry}: {why}" for model in models for entry, why in model.results.lost.items()))  # fmt: skip
    return 0


# ---- what to measure ----


def check_flags(arguments: argparse.Namespace) -> tuple[list[str], list[str], list[Question]]:
    """Who, in which formats, and what; UsageError before anything takes time."""
    names = [OURS, *words(arguments.against or "")]
    if strangers := [name for name in names if name not in MODULES]:
        raise UsageError(f"--against does not know {strangers[0]!r}; there are {', '.join(list(MODULES)[1:])}")
    dtypes = words(arguments.dtype or ("f32" if arguments.backend == "numpy" else "bf16,int8,int4"))
    if strangers := [dtype for dtype in dtypes if dtype not in FORMATS]:
        raise UsageError(f"--dtype does not know {strangers[0]!r}; there are {', '.join(FORMATS)}")
    if arguments.size and arguments.model:
        raise UsageError("--size and --model name two models; give one of them")
    for size in words(arguments.size or ""):
        size_named(size)
    for flag in ("rounds", "tokens", "threads"):
        value = getattr(arguments, flag)
        if value is not None and not 1 <= value <= 10_000:
            raise UsageError(f"--{flag} must be from 1 to 10000, is {value}")
    if arguments.batch != 0 and not 2 <= arguments.batch <= 256:
        raise UsageError(f"--batch must be 0 or from 2 to 256, is {arguments.batch}")
    questions = [Question("prefill", tokens) for tokens in numbers("--prefill", arguments.prefill, 1)]
    questions += [Question("decode", arguments.tokens, depth) for depth in numbers("--decode", arguments.decode, 0)]
    if arguments.batch:
        questions.append(Question("decode", arguments.tokens, 0, arguments.batch))
    if not questions:
        raise UsageError("nothing to measure: give --prefill, --decode or --batch")
    return names, dtypes, questions


def words(text: str) -> list[str]:
    """
    >>> words("int8, int4,int8")
    ['int8', 'int4']
    """
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(flag: str, text: str, least: int) -> list[int]:
    """The numbers of a flag.

    >>> numbers("--decode", "0,2048", 0), numbers("--decode", "", 0)
    ([0, 2048], [])
    """
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers with commas between, not {text!r}") from None
    if any(not least <= number <= 2**20 for number in found):
        raise UsageError(f"{flag} takes numbers from {least} to {2**20}, not {text!r}")
    return found


def folders(arguments: argparse.Namespace, report):
    """The models, by name; those of random weights are made when their turn comes."""
    if arguments.model:
        folder = folder_here(arguments.model)
        yield folder.name, folder
        return
    for size in words(arguments.size or "0.5B"):
        report(f"{size}: writing random weights (once)")
        yield size, made(size, report)


def made(size: str, report) -> Path:
    return sized_model(size, lambda done, total: report(f"{size}: random weights, layer {done} of {total}"))


# ---- measuring ----


def measure(arguments, name: str, folder: Path, names, dtypes, questions, threads: int, report) -> Sized:
    """Everything about one model: in as few groups as memory allows, each of them measured together."""
    config = read_config(folder / "config.json")
    questions = [question for question in questions if fits(config, question)]
    results = Results()
    everyone = entries(names, dtypes, results)
    options = {"backend": arguments.backend, "kv": arguments.kv}
    exports = cache_folder() / "exports" / f"{name}-{key_of(folder)}"
    tasks = {entry: Task(folder, exports, entry.dtype, threads, options if entry.name == OURS else {})
             for entry in everyone}  # fmt: skip
    starts = {} if arguments.no_start else time_starts(name, tasks, results, report)
    for group in groups(needed(config, everyone), SHARE * (available_bytes() or 8e9)):
        together = {entry: task for entry, task in tasks.items() if entry.dtype in group}
        results.add(run_rounds(together, questions, arguments.rounds, threads,
                               lambda text: report(f"{name}: {text}")))  # fmt: skip
    works = {
        (dtype, question): work(
            config, dtype, arguments.kv, 1 if question.kind == "decode" else question.tokens, question.depth,
            question.sequences,
        )
        for dtype in {entry.dtype for entry in everyone}
        for question in questions
    }  # fmt: skip
    kv_bytes = {dtype: 512.0 * KV_BYTES[arguments.kv] * config.kv_values_per_token for dtype in dtypes}
    return Sized(name, results, works, figures(results, works, kv_bytes), starts)


def fits(config: Config, question: Question) -> bool:
    """Whether the model can look that far back."""
    return question.depth + question.tokens <= config.context


def key_of(folder: Path) -> str:
    """What exports of this folder are filed under: they must not serve another model of the same name."""
    stat = (folder / "config.json").stat()
    return hashlib.sha256(repr((str(folder.resolve()), stat.st_mtime_ns, stat.st_size)).encode()).hexdigest()[:16]


def entries(names: list[str], dtypes: list[str], results: Results) -> list[Entry]:
    """Who takes part, format by format; a missing peer is noted. transformers also shows the float32 that it has."""
    found = []
    for name in names:
        if why := missing(name):
            results.lost[Entry(name, "")] = why
            continue
        wanted = dtypes if name != "transformers" else [*dtypes, *(["f32"] if "f32" not in dtypes else [])]
        found += [Entry(name, dtype) for dtype in wanted if dtype in formats(name)]
    order = [*dtypes, "f32"]
    return sorted(found, key=lambda entry: order.index(entry.dtype))


def needed(config: Config, everyone: list[Entry]) -> dict[str, float]:
    """Bytes of memory for all contestants of a format."""
    found: dict[str, float] = {}
    for entry in everyone:
        found[entry.dtype] = found.get(entry.dtype, 0.0) + weight_bytes(config, entry.dtype) + BESIDE
    return found


def time_starts(name: str, tasks: dict[Entry, Task], results: Results, report) -> dict[tuple[str, str], float]:
    """Seconds from the command to the first token, of ours in every format; the first ever in the first."""
    found: dict[tuple[str, str], float] = {}
    ours = [entry for entry in tasks if entry.name == OURS]
    for entry in ours:
        try:
            if entry == ours[0] and tasks[entry].options["backend"] == "cpu":
                report(f"{name}: first start ever, {entry}")
                found[entry.dtype, "first ever"] = start_seconds(tasks[entry], first_ever=True)
            report(f"{name}: start, {entry}")
            start_seconds(tasks[entry])  # makes what is missing
            found[entry.dtype, "warm"] = min(start_seconds(tasks[entry]) for _ in range(3))
        except Lost as error:
            results.lost[entry._replace(name=f"{entry.name} start")] = str(error)
    return found


# ---- showing ----


def show(models: list[Sized], found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    for model in models:
        if limits := found["models"][model.name]["limits"]:
            peaks = ", ".join(f"{dtype} {peak / 1e9:,.0f}" for dtype, peak in limits["peaks"].items())
            console.print(f"{model.name}: memory reads at {limits['read'] / 1e9:.1f} GB/s; peaks in GFLOP/s: {peaks}")
        for heads, body in ((HEADS, rows(model)), (("model", "figure", "weights", "value", "should be", "met"),
                                                   figure_rows(model))):  # fmt: skip
            if body:
                table = Table(box=None, header_style="bold", pad_edge=False)
                for head in heads:
                    table.add_column(head, justify="right" if head in ("tokens/s", "of ceiling") else "left")
                for cells in body:
                    table.add_row(*map(Text, cells))
                console.print(table)
        for (dtype, when), seconds in model.starts.items():
            console.print(f"{model.name} {dtype}: first token {seconds:.2f} s after the command ({when})")
        for entry, why in model.results.lost.items():
            console.print(f"{model.name}: left out {entry}: {why}")
    if found["machine"]["others"] > DISTURBED:
        console.print(
            f"other programs took {found['machine']['others']:.0%} of the processors: do not trust these times"
        )


def save(folder: Path, models: list[Sized], found: dict[str, Any]) -> None:
    """The report as DATE.md and DATE.json."""
    stem = found["date"][:10]
    write(folder / f"{stem}.json", json.dumps(found, indent=1) + "\n")
    write(folder / f"{stem}.md", markdown(models, found))


def write(path: Path, text: str) -> None:
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


@contextmanager
def progress(quiet: bool):
    """Gives a function (text) that shows what is going on, on standard error: a line that changes, if it can."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield status.update
