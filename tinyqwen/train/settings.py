"""All that decides a run's result, besides the model that it begins with and its data.

Each stage has settings of its own on top of those here. A field says what it is for, and what it may be: the command
line makes a flag of each, and a saved run keeps them all, to be continued with the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from tinyqwen.errors import UsageError
from tinyqwen.train.optimisers.schedules import cosine, wsd

SCHEDULES = {"wsd": wsd, "cosine": cosine}
OPTIMISERS = ("adamw", "ondare", "onties", "muon")


def setting(default: Any, help: str, *, least: float = 0, choices: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass: its default, what it means, the least it may be or the words it may be."""
    return field(default=default, metadata={"help": help, "least": least, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What every stage needs to know.

    Errors: UsageError for what is out of range.
    """

    steps: int = setting(1000, "in all", least=1)
    part: int = setting(0, "tokens at once, if a step does not fit in memory (0: all)")
    recompute: bool = setting(False, "less memory, a third more time")
    optimiser: str = setting(
        "adamw", "ondare and onties merge with what was learnt since --pretrained", choices=OPTIMISERS
    )
    keep: float = setting(0.2, "ondare, onties: the fraction of each step that is kept")
    alpha: float = setting(
        1e-5, "ondare, onties: weight of what was learnt before; alpha times steps is about 1 in tiny models, 0.001 in "
        "large ones"
    )  # fmt: skip
    rescale: bool = setting(False, "ondare: divide what is kept by keep, as the published code does")
    lr: float = setting(1e-3, "the peak of the learning rate")
    schedule: str = setting("wsd", "how the rate goes up and down", choices=tuple(SCHEDULES))
    warmup: int = setting(100, "steps in which the rate rises")
    weight_decay: float = setting(0.1, "of matrices")
    clip: float = setting(1.0, "gradients' norm at most")
    seed: int = setting(0, "of everything that is left to chance")

    def __post_init__(self):
        for each in fields(self):
            value, least, choices = getattr(self, each.name), each.metadata["least"], each.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(f"{each.name} must be one of {', '.join(choices)}, is {value!r}")
            if not isinstance(value, str) and not least <= value < math.inf:
                raise UsageError(f"{each.name} must be at least {least}, and finite, is {value}")
        if not 0 < self.keep <= 1 or self.alpha > 1:
            raise UsageError(f"keep must be above 0 and at most 1, alpha at most 1; they are {self.keep}, {self.alpha}")

    def rate(self, number: int) -> float:
        """The learning rate of that step."""
        return self.lr * SCHEDULES[self.schedule](number, self.steps, warmup=self.warmup)
