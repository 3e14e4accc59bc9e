"""The machine itself, measured in turn with everybody else: what nobody can exceed."""

from __future__ import annotations

from tinyqwen.bench.contestants.task import Task
from tinyqwen.bench.limits import measure, read_bandwidth

FORMATS = ("",)
NEEDS = ()


def prepare(task: Task) -> None:
    """Nothing to make; what has to be compiled is, by measuring once."""
    measure(task.threads)


def load(task: Task) -> Model:
    return Model(task)


class Model:
    def __init__(self, task: Task):
        self.threads, self.about, self.weight_bytes, self.token_bytes = task.threads, {}, 0, 0

    def limits(self) -> dict:
        """As of `tinyqwen.bench.limits.Limits`."""
        return measure(self.threads)._asdict()

    def read(self) -> float:
        """Only its bandwidth, now."""
        return read_bandwidth(self.threads)
