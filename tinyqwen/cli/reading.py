"""Progress while prompts are read: tokens done, tokens a second, and the time left.

Tokens do not all take alike: the last of 131,072 looks back at 16 times the work that the matrices are (0.5B). So the
time left follows from the work left, and not from the tokens left, which would promise minutes where it takes an hour:

    work(n) = 2 * matrices * n + 4 * L * H * K * n^2 / 2          FLOPs of a text's first n tokens
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tinyqwen.config import Config
from tinyqwen.generate import Running
from tinyqwen.weights import count_parameters

WORTH_SAYING = 2.0  # seconds


def prefill_work(config: Config, tokens: int) -> float:
    """FLOPs of a text's first tokens, windows left out of account.

    >>> from tinyqwen.sizes import SIZES
    >>> [f"{prefill_work(SIZES['0.5B'].config(), tokens):.1e}" for tokens in (1000, 131072)]
    ['7.6e+11', '8.3e+14']
    """
    counts = count_parameters(config)
    matrices = counts["active"] - (counts["total"] - counts["non_embedding"])
    pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2 * matrices * tokens + pair * tokens**2 / 2


class Reading:
    """A bar on standard error, if that is a terminal and reading will take longer than WORTH_SAYING.

    `update` after each step, `clear` before anything else is printed; leaving the context clears, too.
    """

    def __init__(self, config: Config, sequences: Sequence[Running], *, quiet: bool, console: Console | None = None):
        self.config, self.sequences = config, sequences
        self.kept = [sequence.cache.length for sequence in sequences]  # of turns before: read already
        self.started = time.perf_counter()
        console = console or Console(stderr=True)
        words = "{task.completed:,.0f} of {task.total:,.0f} tokens · {task.fields[speed]:,.0f} tokens/s · "
        self.progress = Progress(
            TextColumn("reading"), BarColumn(), TextColumn(words + "{task.fields[left]} left"), console=console,
            transient=True, auto_refresh=False, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        total = sum(sequence.prompt_length for sequence in sequences)
        self.task = self.progress.add_task("", total=total, speed=0.0, left="")

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_) -> None:
        self.clear()

    def update(self) -> None:
        if self.progress.disable:
            return
        elapsed, read, left = self.times()
        if elapsed + left > WORTH_SAYING:
            self.progress.start()
            self.progress.update(
                self.task, completed=sum(self.kept) + read, speed=read / elapsed, left=timedelta(seconds=round(left))
            )
            self.progress.refresh()

    def clear(self) -> None:
        if self.progress.live.is_started:
            self.progress.stop()

    def times(self) -> tuple[float, int, float]:
        """Seconds since the start, tokens read since then, and seconds to come at this pace of work."""
        elapsed = time.perf_counter() - self.started
        now = [min(sequence.cache.length, sequence.prompt_length) for sequence in self.sequences]
        ends = [sequence.prompt_length for sequence in self.sequences]
        before, done, whole = (sum(prefill_work(self.config, n) for n in each) for each in (self.kept, now, ends))
        return elapsed, sum(now) - sum(self.kept), elapsed * (whole - done) / max(done - before, 1)
