"""Memory in pages of 2 MB, for weights and KV caches: all of them are read for every token.

A processor remembers where some thousand pages lie. With pages of 4 KB that is some MB, so reading a model's weights
means looking up page after page, in tables that are in memory themselves, and the fetching ahead stops at each page's
end. Linux gives pages of 2 MB to memory that asks for them (`madvise`); elsewhere this is ordinary memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np

LARGE = 1 << 21
# Asked for at a time. What was never touched takes no memory, but for the rest of each block's last page: 40 MB of a
# model of 3 GB if blocks have 64 MB, 10 MB if they have 256; with these it is a few.
BLOCK = 512 * LARGE
LINE = 64  # arrays begin at a cache line


class LargePages:
    """Arrays one after another in large pages. They live as long as they are used.

    >>> pages = LargePages()
    >>> some, more = pages.empty((3, 5), np.dtype(np.float32)), pages.empty((7,), np.dtype(np.uint8))
    >>> some.shape, more.ctypes.data - some.ctypes.data
    ((3, 5), 64)
    """

    def __init__(self):
        self.free = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > len(self.free):
            self.free = block(max(BLOCK, nbytes))
        array = self.free[:nbytes].view(dtype).reshape(shape)
        self.free = self.free[-(-nbytes // LINE) * LINE :]
        return array


def block(nbytes: int) -> np.ndarray:
    """Fresh memory that begins at a large page."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, nbytes + LARGE, **private)  # shared memory, the default, gets no large pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    start = -array.ctypes.data % LARGE
    return array[start : start + nbytes]
