"""A run of training, whatever the stage: open model and data, go on where it stopped, step, log and save."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import backends
from tinyqwen.cli import options
from tinyqwen.cli.train_display import Display
from tinyqwen.cli.train_kinds import KINDS, Kind, Source, weights_of
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.memory import keep_freed
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import pretrain, reward, saved
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.optimisers.named import Update, optimiser
from tinyqwen.train.optimisers.online_merging import task_vector
from tinyqwen.train.settings import Settings
from tinyqwen.train.training import Training
from tinyqwen.weights import tree

Tensors = dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write steps to, or to continue")
    parser.add_argument("--data", metavar="FILE", type=Path, action="append", required=True, help="may be repeated")
    if kind.module is pretrain:
        parser.add_argument("--fresh", action="store_true", help="begin with random weights")
    if kind.judged:
        parser.add_argument("--reward", metavar="FOLDER", help="a model made by `train reward`, in place of verifiers")
    parser.add_argument("--pretrained", metavar="FOLDER", help="the model before fine-tuning, for ondare and onties")
    parser.add_argument("--save-every", type=int, default=200, metavar="N", help="steps (default: 200)")
    options.add_ignore_argument(parser)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each step")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    group = parser.add_argument_group("training")
    add_settings(group, kind.module.Settings)
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


def open_source(arguments: argparse.Namespace) -> Source:
    """The model that the flags name, as far as its small files tell."""
    try:
        backend = backends.get(arguments.backend, threads=arguments.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    folder, ignored = options.model_folder(arguments), tuple(arguments.ignore_config)
    config, tokenizer = read_config(folder / "config.json", ignored), Tokenizer(folder)
    if tokenizer.size > config.vocab_size:
        raise UsageError(f"the tokenizer has ids up to {tokenizer.size - 1}, the model {config.vocab_size} rows")
    return Source(backend, folder, config, tokenizer, ignored, getattr(arguments, "reward", None))


def run(arguments: argparse.Namespace) -> int:
    if arguments.save_every < 1:
        raise UsageError(f"--save-every must be at least 1, is {arguments.save_every}")
    kind, out = KINDS[arguments.stage], arguments.out
    names = [each.name for each in fields(kind.module.Settings)]
    settings = kind.module.Settings(**{name: getattr(arguments, name) for name in names})
    source = open_source(arguments)
    data = kind.read(arguments.data, source, settings)
    about = {"stage": arguments.stage, "pretrained": arguments.pretrained or "", "reward": source.reward or ""}
    keep_freed()

    begun = saved.found(out)[-1:]
    for folder in begun:
        saved.check_same(folder, settings, data.digest, about)
    config, tensors, head = tensors_of_run(arguments, settings, source, begun)
    update = update_of(settings, source, arguments.pretrained, tensors)
    state = saved.load_state(begun[0], tensors) if begun else start(source.backend, tensors)
    number = saved.number_of(begun[0]) if begun else 0
    saved.continue_log(out, number)
    weights = reward.scoring(tensors) if kind.module is reward else tree(tensors)
    training = Training(
        source.backend, config, tensors, state, kind.stage(data, settings, source, weights), settings,
        number=number, weights=weights, update=update,
    )  # fmt: skip

    def save(number: int) -> Path:
        return saved.save(
            out, source.folder, config, {**head, **tensors}, state, settings, data.digest, number=number, about=about,
            others={name: x for name, x in tensors.items() if name == reward.SCORE},
        )  # fmt: skip

    with Display(arguments, settings, data, number) as display:
        while training.number < settings.steps:
            try:
                report = training.step()
            except FloatingPointError as error:
                raise TinyqwenError(f"step {training.number + 1}: {error}; a lower --lr may help") from None
            saved.log(out, report)
            display.show(report)
            if report.step % arguments.save_every == 0 or report.step == settings.steps:
                display.say(f"{save(report.step)}: saved")
                if kind.talks and not display.quiet:
                    display.sample(*kind.talks(data, source, weights, report.step // arguments.save_every))
    if not (arguments.quiet or arguments.json):
        print(kind.next.format(folder=saved.found(out)[-1]))
    return 0


def tensors_of_run(
    arguments: argparse.Namespace, settings: Settings, source: Source, begun: list[Path]
) -> tuple[Config, Tensors, Tensors]:
    """What is to learn, as it was when the run stopped or as it begins; and a head that has no part in it."""
    if begun:
        config, tensors = weights_of(begun[0])
    elif getattr(arguments, "fresh", False):
        config, tensors = source.config, initial_weights(source.config, settings.seed)
    else:
        config, tensors = weights_of(source.folder, source.ignored)
    if KINDS[arguments.stage].module is not reward:
        return config, tensors, {}
    head = {name: x for name, x in tensors.items() if name == "lm_head.weight"}
    return config, reward.with_score(tensors, settings.seed, begun[0] if begun else None), head


def update_of(settings: Any, source: Source, pretrained: str | None, tensors: Tensors) -> Update:
    """The optimiser, with what the source had learnt since the pretrained model if it asks for that."""
    if not pretrained or not settings.optimiser.startswith("on"):
        return optimiser(settings)
    before, after = weights_of(pretrained, source.ignored)[1], weights_of(source.folder, source.ignored)[1]
    try:
        task = task_vector(after, before)
    except ValueError as error:
        raise UsageError(f"--pretrained {pretrained}: {error}") from None
    if new := tensors.keys() - task.keys():
        raise UsageError(f"{settings.optimiser}: {', '.join(new)} was not there before; take adamw or muon")
    return optimiser(settings, task)
