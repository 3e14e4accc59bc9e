"""Looking inside a generation: the numbers that some operations made, kept by step and place.

The tracer keeps shapes; here arrays are kept, and so only those that a question is about: the attention weights of one
layer, the router's choices, one row of every layer's output. What is kept is copied to NumPy at once, because the model
writes over some of its arrays; the model itself is not changed, and neither is any token.

What is made of it: `attention_maps.py` who looked at whom, `routing.py` which experts each token went to, `lens.py`
what each layer would have said, had it been the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from backends.interface import Backend, Operation
from backends.places import Places
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.generate import CHUNK, Running, generate
from tinyqwen.step import Step
from tinyqwen.weights import Node, names_of

Keep = Callable[[str, str], bool]  # (path, operation's name) -> whether to keep the result
OPENED = {"attention": "softmax", "attention_part": "softmax_part", "route": "softmax"}  # what is inside, to be kept


class Kept(NamedTuple):
    """A result: an array, or a tuple of arrays, as NumPy copies."""

    path: str
    operation: str
    result: Any


class Part(NamedTuple):
    """One sequence's share of a step: its rows [start, stop), the first of them at `position` of the sequence.

    sequence   its number among those given to `capture`
    phase      prefill or decode
    """

    sequence: int
    start: int
    stop: int
    position: int
    phase: str


@dataclass
class CapturedStep:
    """One call of the model: its tokens, whose they were, and what was kept, in order of finishing."""

    step: Step | None = None
    config: Config | None = None
    parts: list[Part] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @property
    def asked(self) -> list[tuple[Part, int]]:
        """The sequences whose next token was chosen after this step, each with its row among the logits."""
        assert self.step is not None
        row_of = {int(row): n for n, row in enumerate(self.step.row_N)}
        return [(part, row_of[part.stop - 1]) for part in self.parts if part.stop - 1 in row_of]


def everything(step: Step | None, operation: str, result):
    """The whole result, unless it is a layer's: of that only the rows whose logits are wanted, for `lens`."""
    return result[step.row_N.tolist()] if operation == "decoder_layer" and step is not None else result


class Capture(Places):
    """Keeps copies of the results that `keep` names; of each, the part that `part` takes.

    Where what is kept is inside an operation that a backend does in one go, the definition runs in its place.

    >>> double = Operation(lambda backend, x: x + x); double.name = "double"
    >>> watching = Capture(Backend(), {}, keep=lambda path, operation: operation == "double")
    >>> double(watching, np.float32([1, 2])), watching.steps[-1].kept
    (array([2., 4.], dtype=float32), [Kept(path='double', operation='double', result=array([2., 4.], dtype=float32))])
    """

    def __init__(self, inner: Backend, names: Mapping, keep: Keep, part: Callable = everything):
        super().__init__(inner, names)
        self.keep, self.part = keep, part
        self.steps = [CapturedStep()]

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        path = self.place(operation, arrays)
        now = self.steps[-1]
        now.step, now.config = settings.get("step", now.step), settings.get("config", now.config)
        self.inside.append(path)
        in_one_go = operation.name in OPENED and operation.name in self.bodies
        try:
            if in_one_go and self.keep(f"{path}.{OPENED[operation.name]}", OPENED[operation.name]):
                out = operation.definition(door or self, *arrays, **settings)
            else:
                out = super().run(operation, arrays, settings, door)
        finally:
            self.inside.pop()
        if self.keep(path, operation.name):
            now.kept.append(Kept(path, operation.name, copies(self.part(now.step, operation.name, out))))
        return out


def copies(value):
    """NumPy copies of an array or a tuple of arrays, wherever they live.

    >>> x = np.zeros(2); copy = copies((x, x))[0]; x += 1; copy
    array([0., 0.])
    """
    if isinstance(value, (tuple, list)):
        return tuple(copies(item) for item in value)
    return value.get() if hasattr(value, "get") else np.array(value)


def capture(
    backend: Backend,
    config: Config,
    weights: Node,
    sequences: Sequence[Running],
    keep: Keep,
    *,
    vocabulary: int | None = None,
    chunk: int = CHUNK,
) -> list[CapturedStep]:
    """Run the sequences together to their ends and keep what `keep` asks for. The tokens are the same as without.

    Memory: all that is kept, until the caller lets go of it. Attention weights of one layer take 4 * H * T * S bytes
    (0.5B: 57 MB for a prompt of 1000 tokens), so ask for one layer.
    """
    watching = Capture(backend, names_of(weights), keep)
    steps = watching.steps
    steps.clear()
    number_of = {id(running.cache): number for number, running in enumerate(sequences)}
    begin = lambda: steps.append(CapturedStep())  # noqa: E731  (append itself wants the step)
    for _ in generate(watching, config, weights, sequences, vocabulary=vocabulary, chunk=chunk, before_step=begin):
        pass
    for one in steps:
        assert one.step is not None
        for start, stop, cache in one.step.spans:
            number, position = number_of[id(cache)], int(one.step.position_T[start])
            phase = "decode" if position >= sequences[number].prompt_length else "prefill"
            one.parts.append(Part(number, start, stop, position, phase))
    return steps


def missing(what: str) -> UsageError:
    return UsageError(f"{what} were not kept: `capture` keeps what it is asked for")
