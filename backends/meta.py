"""The meta backend: computes nothing, answers every operation with the shape of its result.

A model on it is a plan: give it `shape_only` weights and the unchanged code tells what a 72B would do, on a laptop, in
a second. Every operation's cost has the result's shape in it, so nothing here knows any operation.

    wrap it in `Tracing`     to list each operation with its shape, FLOPs and bytes
    read `peak_bytes`        for the most that intermediate results take at one time
"""

from __future__ import annotations

import weakref

from backends.interface import Backend, Operation, shape_only


class Meta(Backend):
    """A backend without data.

    opened                   names of operations to look inside of although they have a cost of their own
    live_bytes, peak_bytes   what the results that are still referred to would take, now and at most

    >>> import numpy as np
    >>> add = Operation(lambda backend, x, y: x + y)
    >>> from backends.interface import Cost
    >>> @add.cost
    ... def _(x, y): return Cost(shape_only(x.shape), x.size, x.nbytes + y.nbytes, x.nbytes)
    >>> meta, x = Meta(), shape_only((10**6, 10**6))
    >>> add(meta, add(meta, x, x), x).shape, meta.peak_bytes // 10**12
    ((1000000, 1000000), 8)
    """

    name = "meta"

    def __init__(self, dtype="float32", opened: frozenset[str] = frozenset()):
        super().__init__(dtype=dtype)
        self.opened = opened
        self.live_bytes = self.peak_bytes = 0

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        if operation.cost_of is None or operation.name in self.opened:
            return operation.definition(door or self, *arrays, **settings)
        out = operation.cost_of(*arrays, **settings).out
        for array in out if isinstance(out, tuple) else (out,):
            if not isinstance(array, list):  # a list holds views of a cache, which is memory of its own
                self.hold(array)
        return out

    def hold(self, array) -> None:
        """Count an array as long as anything refers to it: Python's own reference counts are the model's liveness."""
        self.live_bytes += array.nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        owner = array
        while owner.base is not None:  # views refer to the first owner of the memory, and not to the array viewed
            owner = owner.base
        weakref.finalize(owner, self.release, array.nbytes)

    def release(self, nbytes: int) -> None:
        self.live_bytes -= nbytes

    def empty(self, shape: tuple[int, ...], dtype=None):
        return shape_only(shape, dtype or self.dtype)
