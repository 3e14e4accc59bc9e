"""What a person sees while a model learns: the loss as a curve and a bar, and lines of JSON if asked."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import numpy as np

from tinyqwen.errors import UsageError
from tinyqwen.train import saved
from tinyqwen.train.curve import Curve, chart, read_curve
from tinyqwen.train.training import Report


class Display:
    """Curve and bar on standard error, if that is a terminal; lines of JSON on standard output, if asked.

    A run that goes on shows what its log says of the steps before.
    """

    def __init__(self, arguments: argparse.Namespace, settings: Any, data: Any, step: int):
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.as_json, self.quiet, self.steps = arguments.json, arguments.quiet or arguments.json, settings.steps
        self.console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=self.console)
        self.task = self.progress.add_task("training", total=settings.steps, completed=step)
        self.losses: dict[int, float] = {}
        if step:
            with contextlib.suppress(UsageError):  # a log that somebody took away
                _, step_N, loss_N = read_curve(arguments.out)
                self.losses.update(zip(step_N.tolist(), loss_N.tolist()))
        self.live: Any = contextlib.nullcontext()
        if self.console.is_terminal and not self.quiet:
            self.live = Live(console=self.console, get_renderable=self.picture, transient=True)
        self.say(f"{data}, {settings.steps * settings.batch / len(data):.1f} times in {settings.steps:,} steps")
        if step:
            self.say(f"continuing after step {step:,}")

    def __enter__(self):
        self.live.__enter__()
        return self

    def __exit__(self, *error):
        self.live.__exit__(*error)
        if self.console.is_terminal:
            self.say(self.curve())

    def picture(self):
        from rich.console import Group
        from rich.text import Text

        return Group(Text(self.curve(), no_wrap=True), self.progress)

    def curve(self) -> str:
        """The loss of all steps so far, with room for those to come; nothing for fewer than two."""
        if len(self.losses) < 2:
            return ""
        step_N, loss_N = (np.array(list(column)) for column in (self.losses.keys(), self.losses.values()))
        return chart(Curve("loss", step_N, loss_N), width=min(72, self.console.width - 12), height=6, last=self.steps)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def show(self, report: Report) -> None:
        self.losses[report.step] = report.loss
        speed = report.tokens / report.seconds
        figures = "".join(f"  {name} {value:.3f}" for name, value in report.figures.items())
        line = f"loss {report.loss:.3f}{figures}  {speed:,.0f} tokens/s"
        self.progress.update(self.task, completed=report.step, description=line)
        if self.as_json:
            print(saved.as_json(report), flush=True)
        elif not self.console.is_terminal and report.step % 100 == 0:
            self.say(f"step {report.step}: {line}")

    def sample(self, prompt: str, answer: str) -> None:
        """What the model says now."""
        self.say(f"  {shortened(prompt)} -> {shortened(answer)}")


def shortened(text: str, most: int = 100) -> str:
    """One line; of a long text the end.

    >>> shortened("a\\nb"), shortened("x" * 200, 5)
    ('a b', '... xxxxx')
    """
    text = " ".join(text.split())
    return text if len(text) <= most else f"... {text[-most:]}"
