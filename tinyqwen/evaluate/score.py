"""Ask a model all items of some tasks, and count. The same items and rules stand behind the harness' home tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tinyqwen.evaluate.replies import TOGETHER, Prompt, Reply, replies
from tinyqwen.needle import wilson
from tinyqwen.runtime import Runtime
from tinyqwen.sampling import with_flags
from tinyqwen.tiny.generators import Item

LIMIT = 64  # tokens: the home tasks' answers are short, and a model that does not stop should not talk for long


class Score(NamedTuple):
    """How a task went: how many items were asked, answered rightly, and ended by the model itself."""

    task: str
    asked: int
    right: int
    ended: int

    @property
    def interval(self) -> tuple[float, float]:
        """Between which rates the true one lies, 95 times of 100 (Wilson)."""
        return wilson(self.right, self.asked)

    def as_dict(self) -> dict:
        """
        >>> Score("sum", 4, 4, 4).as_dict()["interval"][0] > 0.5
        True
        """
        rates = {"accuracy": self.right / self.asked, "interval": self.interval, "ended_rate": self.ended / self.asked}
        return {**self._asdict(), **rates}


def answers(
    runtime: Runtime,
    items: Sequence[Item],
    *,
    together: int = TOGETHER,
    limit: int = LIMIT,
    watch: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """What the model says to each item, greedily, by the checkpoint's own template and generation settings."""
    sampling = with_flags(runtime.generation.sampling, temperature=0)
    encoded = runtime.encode_chats([item.messages for item in items])
    return replies(runtime, [Prompt(ids, limit, sampling=sampling) for ids in encoded], together=together, watch=watch)


def scores(items: Iterable[Item], found: Iterable[Reply]) -> list[Score]:
    """A score for each task, in the order in which they first come."""
    counts: dict[str, list[int]] = {}
    for item, reply in zip(items, found, strict=True):
        count = counts.setdefault(item.task, [0, 0, 0])
        for n, yes in enumerate((True, item.accepts(reply.text), reply.ended)):
            count[n] += yes
    return [Score(task, *count) for task, count in counts.items()]
