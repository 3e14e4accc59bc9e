"""Make a mixture of experts of a dense model: feed-forward parts are copied, shuffled, sliced, and half begun anew.

tinyqwen train upcycle --model FOLDER OUT --experts 8 --per-token 2 --width 256
tinyqwen train pretrain --model OUT --data text.txt MORE        it wants to learn on, or it is no better than before
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import fields
from pathlib import Path

from tinyqwen.checkpoint import save_checkpoint
from tinyqwen.cli import options
from tinyqwen.errors import UsageError
from tinyqwen.files import clear_errors
from tinyqwen.train.saved import BESIDES
from tinyqwen.train.upcycle import DICE, Recipe, scale_for_dense, upcycle
from tinyqwen.weights import count_parameters

SUMMARY = "make a mixture of experts of a dense model"
HELP = {
    "experts": "how many in a layer",
    "per_token": "how many of them a token uses",
    "width": "of an expert; 0: as the dense feed-forward part",
    "shared_width": "of the shared expert; 0: as the dense feed-forward part",
    "reinitialised": "the fraction of each expert that begins anew",
    "by": "what begins anew: " + ", ".join(f"{name} ({what})" for name, what in DICE.items()),
    "seed": "of all that is random",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    for each in fields(Recipe):
        if each.name in HELP:
            choices = {"choices": tuple(DICE)} if each.name == "by" else {"metavar": "N"}
            parser.add_argument(
                "--" + each.name.replace("_", "-"), type=type(each.default), default=each.default,
                help=f"{HELP[each.name]} (default: {each.default})", **choices,
            )  # fmt: skip
    parser.add_argument(
        "--scale", default="1", metavar="X",
        help="factor of the routed experts' output; dense: as large as the dense part's (default: 1, as published)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default: float32)")
    parser.add_argument("--quiet", "-q", action="store_true", help="no report")
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from tinyqwen.cli.train_kinds import weights_of

    recipe = Recipe(**{name: getattr(arguments, name) for name in HELP})
    source = options.model_folder(arguments)
    config, tensors = weights_of(source)
    recipe = recipe.for_model(config, scale=1.0 if arguments.scale == "dense" else number(arguments.scale))
    if arguments.scale == "dense":
        recipe = recipe.for_model(config, scale=scale_for_dense(config, recipe))
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UsageError(f"{arguments.out}: exists and is not empty; name another folder")
    sparse, experts = upcycle(config, tensors, recipe)
    save_checkpoint(arguments.out, sparse, experts, dtype=arguments.dtype)
    with clear_errors(arguments.out):
        for name in BESIDES:
            if (source / name).is_file():
                shutil.copyfile(source / name, arguments.out / name)
    if not arguments.quiet:
        counts = count_parameters(sparse)
        print(f"{arguments.out}: {counts['total']:,} parameters, {counts['active']:,} for a token")
    return 0


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--scale must be a number, or dense; is {text!r}") from None
