"""The fast GPU program: CuPy arrays, hand-written kernels, and one graph per step.

Level 1   the definitions run on CuPy arrays as they stand
Level 2   a `.cu` file for each operation that counts, and beside it a body of the same name that launches it
Level 3   a decode step recorded once and replayed as one graph, see `graph.py`

`Cuda(xp)` is given its array module: CuPy in life, a strict stand-in for it where there is no GPU (tests/cuda_host).
Everything of one backend happens in one stream, in order, so nothing here ever waits but who reads a result.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.cuda import source
from backends.cuda.graph import Recording, record
from backends.interface import Backend, Operation

LOCAL = threading.local()  # .stream: the backend's stream that this thread's launches go to


def bodies() -> dict[str, Callable]:
    """Every body, by the name of its operation: the function in the file of the same name, beside its `.cu`."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        body = getattr(importlib.import_module(f"{__name__}.{file.name}"), file.name, None)
        if body is not None:
            found[file.name] = body
    return found


class Cuda(Backend):
    """CuPy arrays in float32 and CUDA kernels.

    xp          the array module
    compiling   called with a kernel's file before it is compiled, which happens once on a machine
    kept        small tables that bodies want to find again, by a key of their own
    """

    name = "cuda"
    dtypes = (np.float32,)
    chunk = 2048  # tokens of a prompt that are worth a step: fewer do not fill the device

    def __init__(self, xp: Any, compiling: Callable[[str], None] = lambda name: None):
        super().__init__(xp, bodies())
        self.compiling = compiling
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.kept: dict = {}
        self._kernels: dict = {}
        self._allowed: dict = {}  # bytes of shared memory, by kernel

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        self.enter()
        return super().run(operation, arrays, settings, door)

    def empty(self, shape: tuple[int, ...], dtype=None):
        self.enter()
        return super().empty(shape, dtype)

    def enter(self) -> None:
        """Let what this thread does from here on happen in the backend's stream, behind all that it did before.

        Nothing else orders that: an array that it copied here in the default stream would be read too soon.
        """
        if getattr(LOCAL, "stream", None) is not self.stream:
            before = self.xp.cuda.get_current_stream()
            self.stream.wait_event(before.record())
            self.stream.use()
            LOCAL.stream = self.stream

    def launch(self, name: str, grid, block, arguments: tuple, shared_bytes: int = 0, **constants: int) -> None:
        """Run a kernel.

        name          of a kernel in some `.cu` file here; one name, one file
        grid, block   how many blocks, and threads in each: a number, or a tuple of up to three
        arguments     contiguous arrays of this backend, None for a null pointer, and NumPy scalars of the very type
                      that the kernel declares: a Python float would arrive as eight bytes, and be garbage
        shared_bytes  dynamic shared memory of a block
        constants     constexpr ints of the text; for each set of them it is compiled once
        """
        key = name, *constants.items()
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self.kernel(name, constants)
        if shared_bytes > self._allowed.get(key, STATIC_LIMIT):  # never less than before: graphs may rely on it
            kernel.max_dynamic_shared_size_bytes = self._allowed[key] = shared_bytes
        kernel(triple(grid), triple(block), arguments, shared_mem=shared_bytes)

    def kernel(self, name: str, constants: dict[str, int]):
        """The compiled kernel of that name."""
        stem = source.KERNELS[name]
        module = self._kernels.get((stem, *sorted(constants.items())))
        if module is None:
            self.compiling(stem)
            module = self.xp.RawModule(code=source.program(stem, **constants), options=OPTIONS)
            self._kernels[stem, *sorted(constants.items())] = module
        return module.get_function(name)

    def counters(self, count: int):
        """At least so many uint32 zeros, for blocks that count each other; whoever uses them leaves zeros behind.

        One array for all, as launches follow each other. When it grows, graphs go on with the one they know.
        """
        known = self.kept.setdefault("counters", [])
        if not known or known[-1].size < count:
            known.append(self.xp.zeros(max(count, COUNTERS), np.uint32))
        return known[-1]

    def settle(self) -> None:
        self.stream.synchronize()

    def free_bytes(self) -> int:
        """Memory of the device that can still be taken."""
        return self.xp.cuda.runtime.memGetInfo()[0] + self.xp.get_default_memory_pool().free_bytes()

    def record(self, function: Callable[[], Any]) -> Recording:
        """The launches of a function as one graph, see `graph.py`."""
        self.enter()
        return record(self, function)

    def __repr__(self):
        return "<backend cuda: float32>"


OPTIONS = ("--std=c++17",)
COUNTERS = 4096
STATIC_LIMIT = 48 << 10  # beyond this, a kernel must be allowed its shared memory by name


def triple(size) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,)
