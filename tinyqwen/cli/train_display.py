"""What a person sees while a model learns: a bar with the loss, and lines of JSON if asked."""

from __future__ import annotations

import argparse
from typing import Any

from tinyqwen.train import saved
from tinyqwen.train.training import Report


class Display:
    """A bar with the loss, on standard error if that is a terminal; and lines of JSON on standard output, if asked."""

    def __init__(self, arguments: argparse.Namespace, settings: Any, data: Any, step: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.as_json, self.quiet = arguments.json, arguments.quiet or arguments.json
        self.console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(
            *columns, console=self.console, disable=self.quiet or not self.console.is_terminal, transient=True
        )
        self.task = self.progress.add_task("training", total=settings.steps, completed=step)
        self.say(f"{data}, {settings.steps * settings.batch / len(data):.1f} times in {settings.steps:,} steps")
        if step:
            self.say(f"continuing after step {step:,}")

    def __enter__(self):
        self.progress.__enter__()
        return self

    def __exit__(self, *error):
        self.progress.__exit__(*error)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.progress.console.print(text, soft_wrap=True, markup=False)

    def show(self, report: Report) -> None:
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
