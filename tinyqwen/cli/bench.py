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
import os
from pathlib import Path
from typing import Any

import backends
from tinyqwen.bench.limits import KV_BYTES
from tinyqwen.bench.measured import measure
from tinyqwen.bench.models import sized_model
from tinyqwen.bench.report import HEADS, Sized, facts, figure_rows, markdown, rows
from tinyqwen.bench.rounds import DISTURBED, Question
from tinyqwen.bench.team import MODULES, OURS
from tinyqwen.checkpoint.hub import folder_here
from tinyqwen.cli.bench_common import check_outputs, numbers, progress, save, words
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.files import write
from tinyqwen.formats import FORMATS
from tinyqwen.sizes import size_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", metavar="SIZE,...", help="published shapes with random weights (default 0.5B; cuda: 0.5B,1.5B,7B)"
    )
    parser.add_argument("--model", "-m", metavar="FOLDER", help="a model folder instead")
    parser.add_argument(
        "--dtype", metavar="FORMAT,...", help="weight formats (default bf16,int8,int4; numpy: f32; cuda: bf16)"
    )
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
    parser.add_argument("--no-sketch", action="store_true", help="our own model reads its whole head for every token")
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
    check_outputs(arguments)
    with progress(arguments.quiet) as report:
        models = [
            measure(
                name, folder, names, dtypes, questions, backend=arguments.backend, kv=arguments.kv,
                rounds=arguments.rounds, threads=threads, starts=not arguments.no_start,
                sketch=not arguments.no_sketch, report=report,
            )
            for name, folder in folders(arguments, report)
        ]  # fmt: skip
    found = facts(models, threads)
    day = found["date"][:10]
    save(arguments, found, day)
    if arguments.results:
        write(markdown(models, found), str(Path(arguments.results) / f"{day}.md"))
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
