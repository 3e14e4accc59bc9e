"""Run one model in two ways on the same tokens: where do they first part, and is it rounding or a bug?

A side is a backend (numpy, cpu, cuda), it in float64 (numpy:float64), it with weights rounded to bfloat16
(numpy:bf16-weights), a file of recorded outputs (goldens:FILE, model and prompt included), or transformers, if that is
installed. Side B is what is expected. The exit code is 0 if the sides are the same or differ by rounding, and 1 if they
really differ.

  tinyqwen diff --random tiny --a numpy --b numpy:float64
  tinyqwen diff --size 0.5B --a numpy --b transformers "Why is the sky blue?"
  tinyqwen diff --size 0.5B --yarn 4 --a cpu --b transformers --tokens 500        both with the stretched angles
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinyqwen import diff
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.context import stretched
from tinyqwen.diff import Difference, Golden, Report
from tinyqwen.errors import UsageError
from tinyqwen.trace.record import SHORT
from tinyqwen.weights import Node


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; - or @FILE reads it; default: random tokens")
    parser.add_argument("--a", default="numpy", metavar="SIDE", help="one way to run the model (default: numpy)")
    parser.add_argument("--b", default="numpy:float64", metavar="SIDE", help="the other (default: numpy:float64)")
    options.add_format_arguments(parser)
    options.add_context_arguments(parser)
    options.add_ignore_argument(parser)
    parser.add_argument("--decode", type=int, default=4, metavar="N", help="tokens to decode (default 4)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of a random prompt (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random prompt (default 0)")
    parser.add_argument("--chunk", type=int, default=diff.CHUNK, metavar="N", help="tokens of prompt a step")
    parser.add_argument(
        "--rtol", type=float, default=diff.RTOL, metavar="X",
        help=f"what may differ, as a fraction of a result's largest value (default {diff.RTOL:g})",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every place, not only the worst of each layer")
    parser.add_argument("--raw", action="store_true", help="no chat template: the prompt as it stands")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every place of every step")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)
    parser.add_argument("--random", metavar="SIZE", help="random weights: tiny, or a published size; nothing is loaded")


def run(arguments: argparse.Namespace) -> int:
    check(arguments)
    config, weights, ids, folder = subject(arguments)
    config = stretched(config, arguments.yarn, arguments.dca)
    if len(ids) + arguments.decode > config.context:
        raise UsageError(
            f"{len(ids)} tokens of prompt and {arguments.decode} decoded are more than the model's context of "
            f"{config.context}"
        )
    a, b = (diff.make_side(name, config, weights, folder) for name in (arguments.a, arguments.b))
    report = diff.diff(a, b, ids, decode=arguments.decode, chunk=arguments.chunk, rtol=arguments.rtol)
    how = stretch(arguments)
    if arguments.json:
        print(json.dumps({**as_json(report, ids), "run": how}))
    else:
        show(report, len(ids), every=arguments.all, how=how)
    return 0 if report.verdict in ("same", "noise") else 1


def stretch(arguments: argparse.Namespace) -> str:
    """How both sides are run, in the flags' words."""
    yarn = [] if arguments.yarn is None else [f"--yarn {arguments.yarn:g}"]
    dca = [] if arguments.dca is None else [f"--dca {','.join(map(str, filter(None, arguments.dca)))}"]
    return " ".join([*yarn, *dca])


def check(arguments: argparse.Namespace) -> None:
    """Complain about what is out of range before anything is loaded."""
    for name, least in (("decode", 0), ("tokens", 1), ("chunk", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, is {value}")
    if not arguments.rtol >= 0:
        raise UsageError(f"--rtol must be 0 or more, is {arguments.rtol}")
    if arguments.prompt is not None and arguments.tokens is not None:
        raise UsageError("a prompt and --tokens (a random prompt) exclude each other")


def subject(arguments: argparse.Namespace) -> tuple[Config, Node, list[int], Path | None]:
    """What both sides run: config, weights, ids of the prompt, and the folder of the model, if there is one."""
    golden = next((side for side in (arguments.a, arguments.b) if side.startswith("goldens:")), None)
    named = [name for name in ("model", "size", "random") if getattr(arguments, name)]
    if golden:
        if named or arguments.prompt is not None or arguments.tokens is not None:
            raise UsageError("goldens bring their model and prompt: leave out --model, --size, --random and the prompt")
        if arguments.yarn is not None or arguments.dca is not None:
            raise UsageError("goldens were made as their config says: leave out --yarn and --dca")
        held = Golden(golden.removeprefix("goldens:"))
        return held.config, held.weights, held.ids, None
    if arguments.random:
        if len(named) > 1:
            raise UsageError(f"--random and --{named[0]} name two models; give one of them")
        if arguments.prompt is not None:
            raise UsageError("random weights have no tokenizer: leave out the prompt, --tokens N makes a random one")
        config, weights = diff.random_model(arguments.random)
        return config, weights, random_ids(arguments, config), None
    folder = options.model_folder(arguments)
    kept = {**options.format_of(arguments), "ignore_config": tuple(arguments.ignore_config)}
    kept["sketched"] = False  # all logits are compared
    with options.progress_bar("loading", quiet=arguments.quiet or arguments.json) as update:
        if arguments.prompt is None:
            kept["dtype"] = None if arguments.dtype == "auto" else arguments.dtype
            checkpoint = open_checkpoint(folder, **kept, progress=update)
            checkpoint.settle()
            return checkpoint.config, checkpoint.weights, random_ids(arguments, checkpoint.config), folder
        from tinyqwen.runtime import load

        prompt = options.read_text(arguments.prompt, "prompt")
        runtime = load(folder, **kept, progress=update)
        runtime.checkpoint.settle()
    if arguments.raw:
        ids = runtime.tokenizer.encode(prompt)
    else:
        ids = runtime.encode_chat([{"role": "user", "content": prompt}])
    if not ids:
        raise UsageError("the prompt is empty: there is nothing to run")
    return runtime.config, runtime.checkpoint.weights, ids, folder


def random_ids(arguments: argparse.Namespace, config: Config) -> list[int]:
    return np.random.default_rng(arguments.seed).integers(0, config.vocab_size, arguments.tokens or 16).tolist()


# ---- views --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """One line of the table: a place, and what it stands for."""

    label: str
    worst: Difference
    here: bool = False  # where to look


def show(report: Report, tokens: int, *, every: bool = False, how: str = "") -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(no_color=not terminal, force_terminal=terminal, highlight=False)
    if not terminal and "COLUMNS" not in os.environ:
        console.width = 100
    print_report(console, report, tokens, every=every, how=how)


def print_report(console, report: Report, tokens: int | None = None, *, every: bool = False, how: str = "") -> None:
    """Prefill and decode as one table, then where the greedy tokens part, then the verdict.

    every   every place, the worst step of each; else the worst place of each layer, layers alike in one line
    how     both sides are run
    """
    from rich.table import Table
    from rich.text import Text

    narrow, found = console.width < 96, report.comparison
    prompt = f"{tokens} tokens of prompt, " if tokens else ""
    console.print(Text(f"A {report.a}, B {report.b}{', both with ' * bool(how)}{how}"), style="bold")
    console.print(f"{prompt}{len(found.decoded)} decoded; tolerance {report.rtol:g} of a result's largest value")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("place", no_wrap=True, overflow="ellipsis")
    table.add_column("shape", no_wrap=True)
    for heading in ("max abs", "max rel", *([] if narrow else ["rms"])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for phase in ("prefill", "decode"):
        lines = rows(report, phase, every)
        if lines:
            table.add_row(Text(phase, style="dim"))
        for row in lines:
            each = row.worst
            numbers = [each.max_abs, each.max_rel, *([] if narrow else [each.rms])]
            over = not each.max_rel <= report.rtol
            mark = f"<- {report.verdict}" if row.here else "beyond" if over else ""
            cells = [f"  {short(row.label)}", shape(each, narrow), *(f"{number:.1e}" for number in numbers), mark]
            table.add_row(*(Text(cell) for cell in cells), style="bold" if row.here else None)
    console.print(table)
    if alone := len({each.split(", ")[1] for each in [*found.only_a, *found.only_b]}):
        console.print(f"not compared: {alone} places that only one side shows", style="dim")
    console.print(greedy(report))
    console.print(Text(f"{report.verdict}: {report.reason}"), style="bold")


def rows(report: Report, phase: str, every: bool) -> list[Row]:
    """The lines of a phase, in order of execution: every place, or the worst place of each layer.

    Of several steps the worst counts, but where to look is shown as it is.
    """
    here = report.at.where if report.at else None
    groups: dict[str, dict[str, Difference]] = {}  # layer, or place outside of the layers -> path -> its worst step
    for each in report.comparison.differences:
        if each.phase == phase:
            parts = each.path.split(".")
            group = groups.setdefault(".".join(parts[:2]) if parts[0] == "layers" else each.path, {})
            group[each.path] = worst([each, *([group[each.path]] if each.path in group else [])], here)
    if every:
        return [Row(path, each, each.where == here) for group in groups.values() for path, each in group.items()]
    lines: list[Row] = []
    alike: list[str] = []
    for name, group in groups.items():
        row = Row("", worst(group.values(), here))
        row.here = row.worst.where == here
        row.label = row.worst.path
        joins = lines and not (row.here or lines[-1].here) and within(row, report) == within(lines[-1], report)
        if name.startswith("layers.") and alike and joins:
            alike.append(name)
            kept = max(row, lines.pop(), key=lambda row: row.worst.max_rel)
            inner = kept.worst.path.removeprefix("layers.")
            label = f"{alike[0]}-{name.removeprefix('layers.')}"
            lines.append(Row(f"{label}: {inner}" if "." in inner else label, kept.worst))
        else:
            alike = [name] if name.startswith("layers.") else []
            lines.append(row)
    return lines


def worst(places: Iterable[Difference], here: str | None) -> Difference:
    """Where to look, if it is among them; else the place that differs most."""
    return max(places, key=lambda each: (each.where == here, each.max_rel))


def within(row: Row, report: Report) -> bool:
    return row.worst.max_rel <= report.rtol


def short(label: str) -> str:
    """A place in some 40 letters: of a long one, what lies between the block and the operation is left out.

    >>> short("layers.3.self_attn.sliding_window_attention.attention_part.softmax_part")
    'layers.3.self_attn .. softmax_part'
    """
    parts = label.split(".")
    return label if len(label) <= 40 else f"{'.'.join(parts[:3])} .. {parts[-1]}"


def shape(each: Difference, narrow: bool) -> str:
    """Shape and type; those of both sides where they differ."""
    sizes = ["x".join(map(str, shape)) for shape in dict.fromkeys(each.shapes)]
    types = [SHORT.get(name, name) for name in dict.fromkeys(each.dtypes)]
    return "|".join(sizes) if narrow else f"{'|'.join(sizes)} {'|'.join(types)}"


def greedy(report: Report) -> str:
    """One line on the likeliest next tokens, after each token of prompt and answer."""
    found = report.comparison
    if found.parted is None:
        return f"greedy tokens: all {found.predicted} agree" if found.predicted else "greedy tokens: not known"
    step, after, a, b = found.parted
    return f"greedy tokens: part in {step}, after {after} tokens: A takes id {a}, B id {b}"


def as_json(report: Report, ids: list[int]) -> dict:
    """Everything that the table is made of. Infinite numbers are null, which JSON does have."""

    def place(each: Difference | None) -> dict | None:
        if each is None:
            return None
        values = dataclasses.asdict(each)
        finite = lambda value: value if not isinstance(value, float) or math.isfinite(value) else None  # noqa: E731
        return {name: finite(value) for name, value in values.items()}

    found = report.comparison
    parted = found.parted and dict(zip(("step", "after", "a", "b"), found.parted))
    return {
        "a": report.a, "b": report.b, "rtol": report.rtol, "verdict": report.verdict, "reason": report.reason,
        "first": place(report.first), "at": place(report.at), "prompt": ids, "decoded": found.decoded,
        "greedy": {"compared": found.predicted, "parted": parted},
        "only_a": len(found.only_a), "only_b": len(found.only_b),
        "places": [place(each) for each in found.differences],
    }  # fmt: skip
