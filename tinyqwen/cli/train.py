"""Train a model: for now `pretrain`, to predict the next token of plain text.

  tinyqwen train pretrain --model FOLDER --data text.txt OUT            go on from that model's weights
  tinyqwen train pretrain --model FOLDER --data text.jsonl OUT --fresh  begin with random ones: only config.json and
                                                                        tokenizer.json are needed
  tinyqwen chat --model OUT/step-001000                                 talk with what came of it

The same command continues a run that was interrupted, exactly: the weights become those of a run that was not.
FILE.jsonl holds a document a line, {"text": "..."}; any other file is one document.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import backends
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.memory import keep_freed
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import saved
from tinyqwen.train.data import Chunks, documents
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.pretrain import SCHEDULES, Pretraining, Report, Settings
from tinyqwen.weights import tensor_shapes, tensors_of

END = "<|endoftext|>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Settings()
    parser.add_argument("stage", choices=["pretrain"], help="what to learn")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write steps to, or to continue")
    parser.add_argument("--data", metavar="FILE", type=Path, action="append", required=True, help="text (repeatable)")
    parser.add_argument("--fresh", action="store_true", help="begin with random weights")
    parser.add_argument("--save-every", type=int, default=200, metavar="N", help="steps (default: 200)")
    parser.add_argument(
        "--ignore-config", action="append", default=[], metavar="KEY",
        help="accept this key of config.json although its effect is unknown (repeatable)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a line of JSON for each step")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=default.steps, help=f"in all (default: {default.steps})")
    group.add_argument("--tokens", type=int, default=default.tokens, help=f"of a step (default: {default.tokens})")
    group.add_argument("--length", type=int, default=default.length, help=f"of a sequence (default: {default.length})")
    group.add_argument("--part", type=int, default=0, help="tokens at once, if a step does not fit in memory")
    group.add_argument("--recompute", action="store_true", help="less memory, a third more time")
    group.add_argument("--lr", type=float, default=default.lr, help=f"the peak (default: {default.lr})")
    group.add_argument("--schedule", choices=SCHEDULES, default=default.schedule, help="(default: wsd)")
    group.add_argument("--warmup", type=int, default=default.warmup, help=f"steps (default: {default.warmup})")
    group.add_argument("--weight-decay", type=float, default=default.weight_decay, help="of matrices (default: 0.1)")
    group.add_argument("--clip", type=float, default=default.clip, help="gradients' norm at most (default: 1)")
    group.add_argument("--seed", type=int, default=0, help="of random weights and of the data's order (default: 0)")
    options.add_backend_arguments(group)
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.save_every < 1:
        raise UsageError(f"--save-every must be at least 1, is {arguments.save_every}")
    settings = Settings(**{name: getattr(arguments, name) for name in Settings.__dataclass_fields__})
    try:
        backend = backends.get(arguments.backend, threads=arguments.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    source = options.model_folder(arguments)
    config = read_config(source / "config.json", tuple(arguments.ignore_config))
    tokenizer = Tokenizer(source)
    chunks = read_data(arguments.data, tokenizer, config, settings)
    keep_freed()

    begun = saved.found(arguments.out)
    if begun:
        saved.check_same(begun[-1], settings, chunks.digest)
        config, tensors = weights_of(begun[-1])
        state = saved.load_state(begun[-1], tensors)
    else:
        if arguments.fresh:
            tensors = initial_weights(config, settings.seed)
        else:
            config, tensors = weights_of(source, tuple(arguments.ignore_config))
        state = start(backend, tensors)
    saved.continue_log(arguments.out, state.step)
    training = Pretraining(backend, config, tensors, state, chunks, settings)
    with Display(arguments, settings, chunks, state.step) as display:
        while state.step < settings.steps:
            try:
                report = training.step()
            except FloatingPointError as error:
                raise TinyqwenError(f"step {state.step + 1}: {error}; a lower --lr may help") from None
            saved.log(arguments.out, report)
            display.show(report)
            if state.step % arguments.save_every == 0 or state.step == settings.steps:
                folder = saved.save(arguments.out, source, config, tensors, state, settings, chunks.digest)
                display.say(f"{folder}: saved")
    if not (arguments.quiet or arguments.json):
        print(f"python -m tinyqwen chat --model {saved.found(arguments.out)[-1]}")
    return 0


def read_data(paths: list[Path], tokenizer: Tokenizer, config: Config, settings: Settings) -> Chunks:
    if tokenizer.size > config.vocab_size:
        raise UsageError(f"the tokenizer has ids up to {tokenizer.size - 1}, the model {config.vocab_size} rows")
    if END not in tokenizer.control:
        raise UsageError(f"the tokenizer has no {END}, which stands between documents")
    texts = (tokenizer.encode(text) for path in paths for text in documents(path))
    return Chunks(texts, end=tokenizer.control[END], length=settings.length, seed=settings.seed)


def weights_of(folder: Path, ignore_config: tuple[str, ...] = ()) -> tuple[Config, dict]:
    """A model folder's config and tensors, these in float32 and in memory of their own."""
    checkpoint = open_checkpoint(folder, dtype="f32", ignore_config=ignore_config)
    tensors = tensors_of(checkpoint.weights, tensor_shapes(checkpoint.config))
    return checkpoint.config, {name: tensor.copy() for name, tensor in tensors.items()}


class Display:
    """A bar with the loss, on standard error if that is a terminal; and lines of JSON on standard output, if asked."""

    def __init__(self, arguments: argparse.Namespace, settings: Settings, chunks: Chunks, step: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.as_json, self.quiet = arguments.json, arguments.quiet or arguments.json
        self.console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(
            *columns, console=self.console, disable=self.quiet or not self.console.is_terminal, transient=True
        )
        self.task = self.progress.add_task("training", total=settings.steps, completed=step)
        passes = settings.steps * settings.tokens / (len(chunks) * chunks.length)
        self.say(f"{len(chunks.id_N):,} tokens of text, {passes:.1f} times in {settings.steps:,} steps")
        if step:
            self.say(f"continuing after step {step:,}")

    def __enter__(self):
        self.progress.__enter__()
        return self

    def __exit__(self, *error):
        self.progress.__exit__(*error)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.progress.console.print(text, soft_wrap=True)

    def show(self, report: Report) -> None:
        speed = report.tokens / report.seconds
        line = f"loss {report.loss:.3f}  {speed:,.0f} tokens/s"
        self.progress.update(self.task, completed=report.step, description=line)
        if self.as_json:
            print(saved.as_json(report), flush=True)
        elif not self.console.is_terminal and report.step % 100 == 0:
            self.say(f"step {report.step}: {line}")
