"""Write a model in another weight format, as a folder that loads like any other, and show what each layer lost.

The numbers are root mean square errors over root mean square weights. f32 and bf16 folders are read by every program
that reads Hugging Face's; int8 and int4 ones by this one.

With --yarn or --dca, config.json of the new folder says so (rope_scaling, dual_chunk_attention_config): it is run that
way without a flag. Weights are the same. transformers reads the first, and knows nothing of the second.

  tinyqwen convert --size 0.5B --dtype int8 OUT
  tinyqwen convert --model FOLDER --dtype int4 OUT --json
  tinyqwen convert --size 7B --dtype bf16 --yarn 4 OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tinyqwen.checkpoint.convert import EXPECTED, Converted, Loss, convert
from tinyqwen.cli import options
from tinyqwen.errors import UsageError
from tinyqwen.files import size_in_words
from tinyqwen.formats import FORMATS, QUANTISED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--dtype", required=True, choices=FORMATS, help="the format to write")
    parser.add_argument("--tables", choices=QUANTISED, help="embedding and head of an int4 model (default: int8)")
    options.add_context_arguments(parser)
    parser.add_argument("--force", action="store_true", help="write over what OUT holds")
    options.add_ignore_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, with the error of every matrix")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress and no table")
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.tables and arguments.dtype != "int4":
        raise UsageError(f"--tables {arguments.tables} is about --dtype int4, and this is --dtype {arguments.dtype}")
    folder = options.model_folder(arguments)
    with options.progress_bar("converting", quiet=arguments.quiet or arguments.json) as update:
        done = convert(
            folder, arguments.out, arguments.dtype, tables=arguments.tables, force=arguments.force,
            ignore_config=tuple(arguments.ignore_config), yarn=arguments.yarn, dca=arguments.dca, progress=update,
        )  # fmt: skip
    if arguments.json:
        print(json.dumps(as_json(arguments, done)))
    elif not arguments.quiet:
        show(arguments, done)
    for each in done.losses:
        if each.relative > EXPECTED[each.format]:
            expected = f"{EXPECTED[each.format]:.1%} that {each.format} usually costs"
            print(f"tinyqwen: {each.name} lost {each.relative:.2%}, more than the {expected}", file=sys.stderr)
    return 0


def as_json(arguments: argparse.Namespace, done: Converted) -> dict:
    return {
        "out": str(arguments.out), "dtype": arguments.dtype, "bytes_before": done.before, "bytes_after": done.after,
        "layers": {name: total(losses).relative for name, losses in by_layer(done.losses).items()},
        "matrices": {
            each.name: {"format": each.format, "error": each.relative, "expected_below": EXPECTED[each.format]}
            for each in done.losses
        },
    }  # fmt: skip


def by_layer(losses: list[Loss]) -> dict[str, list[Loss]]:
    """Matrices that stand together: those of a layer, and the tables alone.

    >>> list(by_layer([Loss("model.layers.0.mlp.up_proj.weight", "int8", 0, 1), Loss("lm_head.weight", "int8", 0, 1)]))
    ['layers.0', 'lm_head']
    """
    groups: dict[str, list[Loss]] = {}
    for each in losses:
        words = each.name.removeprefix("model.").split(".")
        groups.setdefault(".".join(words[: 2 if words[0] == "layers" else 1]), []).append(each)
    return groups


def total(losses: list[Loss]) -> Loss:
    """Several matrices as one."""
    formats = dict.fromkeys(each.format for each in losses)
    return Loss("", ", ".join(formats), sum(each.error for each in losses), sum(each.weight for each in losses))


def show(arguments: argparse.Namespace, done: Converted) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("format", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("most in", no_wrap=True, overflow="ellipsis")
    for name, losses in by_layer(done.losses).items():
        all_of_it, worst = total(losses), max(losses, key=lambda each: each.relative)
        place = worst.name.removeprefix("model.").removesuffix(".weight").removeprefix(name).lstrip(".")
        most = f"{place} {worst.relative:.2%}" if len(losses) > 1 and worst.relative else ""
        table.add_row(name, all_of_it.format, f"{all_of_it.relative:.2%}", Text(most, style="dim"))
    console = Console(highlight=False)
    console.print(table)
    share = done.after / done.before
    sizes = f"{size_in_words(done.before)} before, {size_in_words(done.after)} after ({share:.0%})"
    console.print(Text(f"{arguments.out}: {sizes}; error {total(done.losses).relative:.2%} in all"), soft_wrap=True)
