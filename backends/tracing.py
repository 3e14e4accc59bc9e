"""Tracing: one record for every operation that passes the door, with its place, shapes, time and cost.

On a device, each operation is waited for: its time is that of its work and of the way there, and the sum of all is more
than a step takes of which nobody asks.

The model does not know that it is watched, and what is recorded is small: shapes, not arrays. Costs are computed once
for each kind of call and then remembered, because all layers of a model call alike; so a record costs some 3 us.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.interface import Backend, Cost, Operation
from backends.places import Places

Shape = tuple[int, ...]


@dataclass(slots=True)
class Span:
    """One operation that ran.

    path        its place, such as layers.3.self_attn.q_proj
    operation   its name
    depth       how many operations it ran inside of
    start, end  seconds, of time.perf_counter
    shape       of the result (of the first, if there are several)
    dtype       of the result
    cost        what it had to do; None for a composite, whose parts have records of their own
    weights     bytes of the model's own arrays among what it read
    replaced    whether a faster body ran, and not the definition
    """

    path: str
    operation: str
    depth: int
    start: float
    end: float
    shape: Shape
    dtype: Any
    cost: Cost | None
    weights: int
    replaced: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Tracing(Places):
    """Records a `Span` for each operation, in order of starting. `closed` spans were inside one that has a cost itself.

    >>> import numpy as np
    >>> double = Operation(lambda backend, x: x + x); double.name = "double"
    >>> tracing = Tracing(Backend(), {})
    >>> out = double(tracing, np.ones((2, 3), np.float32))
    >>> [(span.path, span.shape, span.dtype) for span in tracing.spans]
    [('double', (2, 3), dtype('float32'))]
    """

    def __init__(self, inner: Backend, names: Mapping):
        super().__init__(inner, names)
        self.spans: list[Span] = []
        self._costs: dict = {}

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        inside, spans = self.inside, self.spans
        path = self.place(operation, arrays)
        depth, index = len(inside), len(spans)
        spans.append(None)  # type: ignore[arg-type]  # in order of starting, filled in at the end
        inside.append(path)
        start = time.perf_counter()
        try:
            out = self.inner.run(operation, arrays, settings, door or self)
            self.settle()
        except BaseException:
            del spans[index:]  # what did not happen leaves no record
            raise
        finally:
            end = time.perf_counter()
            inside.pop()
        cost, weights = (None, 0) if operation.cost_of is None else self.cost(operation, arrays, settings)
        first = out
        while isinstance(first, (tuple, list)):
            first = first[0]
        replaced = operation.name in self.bodies and len(spans) == index + 1  # or it left the call to the definition
        spans[index] = Span(path, operation.name, depth, start, end, first.shape, first.dtype, cost, weights, replaced)
        return out

    def cost(self, operation: Operation, arrays: tuple, settings: dict) -> tuple[Cost, int]:
        """The cost of a call and the bytes of weights in it, remembered by the shapes and settings that decide them."""
        kinds = tuple([kind(array) for array in arrays])
        key = (operation.name, kinds, *settings.items())
        known = self._costs.get(key)
        if known is None:
            assert operation.cost_of is not None
            cost = operation.cost_of(*arrays, **settings)._replace(out=None)
            weights = sum(array.nbytes for array in arrays if id(array) in self.names and hasattr(array, "nbytes"))
            self._costs[key] = known = cost, min(weights, cost.read)  # an embedding reads some rows of its table
        return known


def kind(array) -> tuple:
    """What costs depend on: shape and dtype; of a list, of each; of a tree of weights, which one it is.

    >>> import numpy as np
    >>> kind(np.ones((2, 3), np.float32)), kind([np.ones(4)]), kind(None)
    (((2, 3), dtype('float32')), (((4,), dtype('float64')),), ())
    """
    shape = getattr(array, "shape", None)
    if shape is not None:
        return shape, array.dtype
    if isinstance(array, (list, tuple)):
        return tuple([kind(item) for item in array])
    return () if array is None else (id(array),)


def closed(spans: Iterable[Span]) -> list[Span]:
    """The spans that count: each with a cost, without those inside one that has a cost itself.

    Their FLOPs and bytes add up to the whole, nothing twice.
    """
    found, inside = [], None
    for span in spans:
        if inside is not None and span.depth > inside:
            continue
        inside = span.depth if span.cost is not None else None
        if span.cost is not None:
            found.append(span)
    return found
