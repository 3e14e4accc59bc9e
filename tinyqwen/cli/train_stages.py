"""The stages of `train` that are loops of steps: open model and data, go on where a run stopped, step and save."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import backends
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.cli import options
from tinyqwen.cli.train_display import Display
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.memory import keep_freed
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import pretrain, saved, sft
from tinyqwen.train.chats import Format
from tinyqwen.train.data import Chunks, documents
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.optimisers.named import Update, optimiser
from tinyqwen.train.optimisers.online_merging import task_vector
from tinyqwen.train.settings import Settings
from tinyqwen.train.training import Lessons, Training
from tinyqwen.weights import tensor_shapes, tensors_of

ENDOFTEXT = "<|endoftext|>"


class Student(NamedTuple):
    """The model that is to learn, before the first step and now."""

    backend: backends.Backend
    source: Path
    config: Config
    tokenizer: Tokenizer
    tensors: dict[str, np.ndarray]


class Stage(NamedTuple):
    """read: paths, source and settings to data; lessons: data, settings and the student to lessons."""

    module: ModuleType
    summary: str
    read: Callable[[list[Path], Path, Tokenizer, Any], Any]
    lessons: Callable[[Any, Any, Student], Lessons]


def add_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write steps to, or to continue")
    parser.add_argument("--data", metavar="FILE", type=Path, action="append", required=True, help="(repeatable)")
    if stage.module is pretrain:
        parser.add_argument("--fresh", action="store_true", help="begin with random weights")
    parser.add_argument("--pretrained", metavar="FOLDER", help="the model before fine-tuning, for ondare and onties")
    parser.add_argument("--save-every", type=int, default=200, metavar="N", help="steps (default: 200)")
    parser.add_argument(
        "--ignore-config", action="append", default=[], metavar="KEY",
        help="accept this key of config.json although its effect is unknown (repeatable)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a line of JSON for each step")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    group = parser.add_argument_group("training")
    add_settings(group, stage.module.Settings)
    options.add_backend_arguments(group)
    options.add_model_arguments(parser)


def add_settings(group, settings: type[Settings]) -> None:
    """A flag for each field."""
    for each in fields(settings):
        flag, help = "--" + each.name.replace("_", "-"), each.metadata["help"]
        if isinstance(each.default, bool):
            group.add_argument(flag, action="store_true", help=help)
            continue
        choices = {"choices": each.metadata["choices"]} if each.metadata["choices"] else {"metavar": "N"}
        group.add_argument(
            flag, type=type(each.default), default=each.default, help=f"{help} (default: {each.default})", **choices
        )


def run(arguments: argparse.Namespace) -> int:
    if arguments.save_every < 1:
        raise UsageError(f"--save-every must be at least 1, is {arguments.save_every}")
    stage = STAGES[arguments.stage]
    settings = stage.module.Settings(
        **{each.name: getattr(arguments, each.name) for each in fields(stage.module.Settings)}
    )
    try:
        backend = backends.get(arguments.backend, threads=arguments.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    source = options.model_folder(arguments)
    config = read_config(source / "config.json", tuple(arguments.ignore_config))
    tokenizer = Tokenizer(source)
    if tokenizer.size > config.vocab_size:
        raise UsageError(f"the tokenizer has ids up to {tokenizer.size - 1}, the model {config.vocab_size} rows")
    data = stage.read(arguments.data, source, tokenizer, settings)
    about = {"stage": arguments.stage, "pretrained": str(arguments.pretrained or "")}
    keep_freed()

    begun, number = saved.found(arguments.out), 0
    if begun:
        saved.check_same(begun[-1], settings, data.digest, about)
        config, tensors = weights_of(begun[-1])
        state, number = saved.load_state(begun[-1], tensors), saved.number_of(begun[-1])
    else:
        if getattr(arguments, "fresh", False):
            tensors = initial_weights(config, settings.seed)
        else:
            config, tensors = weights_of(source, tuple(arguments.ignore_config))
        state = start(backend, tensors)
    saved.continue_log(arguments.out, number)
    lessons = stage.lessons(data, settings, Student(backend, source, config, tokenizer, tensors))
    update = update_of(settings, source, arguments.pretrained)
    training = Training(backend, config, tensors, state, lessons, settings, number=number, update=update)
    with Display(arguments, settings, data, number) as display:
        while training.number < settings.steps:
            try:
                report = training.step()
            except FloatingPointError as error:
                raise TinyqwenError(f"step {training.number + 1}: {error}; a lower --lr may help") from None
            saved.log(arguments.out, report)
            display.show(report)
            if report.step % arguments.save_every == 0 or report.step == settings.steps:
                folder = saved.save(
                    arguments.out,
                    source,
                    config,
                    tensors,
                    state,
                    settings,
                    data.digest,
                    number=report.step,
                    about=about,
                )
                display.say(f"{folder}: saved")
    if not (arguments.quiet or arguments.json):
        print(f"python -m tinyqwen chat --model {saved.found(arguments.out)[-1]}")
    return 0


def weights_of(folder: Path | str, ignore_config: tuple[str, ...] = ()) -> tuple[Config, dict]:
    """A model folder's config and tensors, these in float32 and in memory of their own."""
    checkpoint = open_checkpoint(folder, dtype="f32", ignore_config=ignore_config)
    tensors = tensors_of(checkpoint.weights, tensor_shapes(checkpoint.config))
    return checkpoint.config, {name: tensor.copy() for name, tensor in tensors.items()}


def update_of(settings: Settings, source: Path, pretrained: str | None) -> Update:
    """The optimiser, with what the source had learnt since the pretrained model if it asks for that."""
    if not pretrained or not settings.optimiser.startswith("on"):
        return optimiser(settings)
    try:
        return optimiser(settings, task_vector(weights_of(source)[1], weights_of(pretrained)[1]))
    except ValueError as error:
        raise UsageError(f"--pretrained {pretrained}: {error}") from None


# ---- the stages ---------------------------------------------------------------------------------------------------


def read_text(paths: list[Path], source: Path, tokenizer: Tokenizer, settings: pretrain.Settings) -> Chunks:
    if ENDOFTEXT not in tokenizer.control:
        raise UsageError(f"the tokenizer has no {ENDOFTEXT}, which stands between documents")
    texts = (tokenizer.encode(text) for path in paths for text in documents(path))
    return Chunks(texts, end=tokenizer.control[ENDOFTEXT], length=settings.length, seed=settings.seed)


STAGES = {
    "pretrain": Stage(
        pretrain, "predict the next token of plain text", read_text,
        lambda data, settings, student: pretrain.lessons(data, settings),
    ),
    "sft": Stage(
        sft, "say what the assistant says in conversations",
        lambda paths, source, tokenizer, settings: sft.read(paths, Format(source, tokenizer), settings),
        lambda data, settings, student: sft.lessons(data, settings),
    ),
}  # fmt: skip
