"""The kernels and their bodies on plain NumPy arrays: the least that is needed to run them, in any order of threads."""

from __future__ import annotations

import functools

import numpy as np

from backends.cuda import bodies, source, triple
from backends.interface import Backend
from tests.cuda_host.host import Module


@functools.cache
def module(stem: str, **constants: int) -> Module:
    return Module(source.program(stem, **constants))


class OnNumPy(Backend):
    """A backend whose memory is NumPy's, and whose GPU is this processor.

    order   of threads and blocks, see `host.ORDERS`
    """

    name = "cuda-host"
    dtypes = (np.float32,)

    def __init__(self, order: str | int = "ascending"):
        super().__init__(np, bodies())
        self.order, self.kept, self._zeros = order, {}, np.zeros(0, np.uint32)

    def launch(self, name: str, grid, block, arguments: tuple, shared_bytes: int = 0, **constants) -> None:
        kernels = module(source.KERNELS[name], **constants)
        kernels.order = self.order
        kernels.get_function(name)(triple(grid), triple(block), arguments, shared_mem=shared_bytes)

    def counters(self, n: int):
        """So many zeros, which kernels leave as zeros."""
        assert not self._zeros.any(), "a kernel has left its counters behind"
        if len(self._zeros) < n:
            self._zeros = np.zeros(n, np.uint32)
        return self._zeros
