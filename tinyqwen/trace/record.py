"""Recording a generation: the steps it took, and the spans of each.

`generate` runs unchanged, on a backend that is wrapped in `Tracing`; prefill and decode are kept apart, because the one
is bound by arithmetic and the other by memory.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from backends.interface import Backend
from backends.tracing import Span, Tracing
from tinyqwen.config import Config
from tinyqwen.generate import CHUNK, Running, generate
from tinyqwen.weights import Node, names_of

SHORT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16", "int64": "i64"}


@dataclass
class TracedStep:
    """One call of the model and the choice of a token after it.

    phase      prefill or decode
    tokens     how many tokens went through
    context    how many tokens were visible at the end of it
    spans      every operation, in order of starting
    """

    phase: str
    tokens: int
    context: int
    spans: list[Span]

    @property
    def seconds(self) -> float:
        return max(span.end for span in self.spans) - self.spans[0].start  # the last to start may be inside another


class Recorder:
    """Watches one sequence: hand `backend` and `before_step` to `generate`, then ask for `steps()`."""

    def __init__(self, backend: Backend, weights: Node, running: Running):
        self.backend = Tracing(backend, names_of(weights))
        self.running = running
        self._starts: list[tuple[int, int]] = []

    def before_step(self) -> None:
        self._starts.append((len(self.backend.spans), self.running.cache.length))

    def steps(self) -> list[TracedStep]:
        """The steps so far, whole ones only: one that was interrupted has not moved the cache."""
        spans = self.backend.spans
        ends = [*self._starts[1:], (len(spans), self.running.cache.length)]
        steps = []
        for (first, before), (last, after) in zip(self._starts, ends):
            if after > before:
                phase = "decode" if before >= self.running.prompt_length else "prefill"
                steps.append(TracedStep(phase, after - before, after, spans[first:last]))
        return steps


def record(
    backend: Backend,
    config: Config,
    weights: Node,
    running: Running,
    *,
    vocabulary: int | None = None,
    chunk: int = CHUNK,
    sketch: Any = None,
) -> list[TracedStep]:
    """Run that sequence to its end under a tracer. The tokens are the same as without.

    sketch   of the head, if there is one: see `tinyqwen.shortlist`
    """
    recorder = Recorder(backend, weights, running)
    length = len(running.ids) + (running.max_new_tokens or 0)
    running.cache.reserve(length, step=min(chunk, len(running.ids)))  # a cache of shapes alone cannot grow
    for _ in generate(
        recorder.backend,
        config,
        weights,
        [running],
        vocabulary=vocabulary,
        chunk=chunk,
        before_step=recorder.before_step,
        sketch=lambda: sketch,
    ):
        pass
    return recorder.steps()


@dataclass
class Row:
    """The same operation in several steps: its last span, and the median of its times."""

    span: Span
    seconds: float


def rows(steps: list[TracedStep]) -> list[Row]:
    """One row per operation, in order; the times are medians over the steps, which must be alike.

    Steps that differ (a prompt's last chunk is shorter) are left out: the first decides.
    """
    alike = [step for step in steps if signature(step.spans) == signature(steps[0].spans)]
    return [
        Row(each[-1], statistics.median(span.seconds for span in each)) for each in zip(*(step.spans for step in alike))
    ]


def signature(spans: list[Span]) -> tuple:
    return tuple((span.path, span.operation, span.depth) for span in spans)


@dataclass
class Layer:
    """A layer's rows, its own first; `same` is what equal layers share: everything but the number and the times."""

    number: int
    rows: list[Row]

    @property
    def same(self) -> tuple:
        prefix = f"layers.{self.number}"
        return tuple((row.span.path.removeprefix(prefix), row.span.shape, row.span.dtype) for row in self.rows)


def split_layers(all_rows: list[Row]) -> tuple[list[Row], list[Layer], list[Row]]:
    """What comes before the layers, the layers, and what comes after them."""
    before: list[Row] = []
    layers: list[Layer] = []
    after: list[Row] = []
    for row in all_rows:
        parts = row.span.path.split(".")
        if parts[0] == "layers":
            number = int(parts[1])
            if not layers or layers[-1].number != number:
                layers.append(Layer(number, []))
            layers[-1].rows.append(row)
        else:
            (after if layers else before).append(row)
    return before, layers, after
