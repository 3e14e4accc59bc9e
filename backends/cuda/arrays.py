"""What bodies share: arrays as kernels take them, and how many blocks and threads to ask for."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from backends.interface import Wrapper
from backends.quantised import Quantised

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
F32, BF16, INT8, INT4 = range(4)  # as `enum Format` in numbers.cuh
SEQUENCES = 32  # of a launch, as in numbers.cuh
MULTIPROCESSORS = 132  # of an H100 or H200; others have a few less or more
FORMATS = {np.dtype(np.float32): F32, BFLOAT16: BF16, np.dtype(np.int8): INT8, "int8": INT8, "int4": INT4}


def gpu(backend):
    """The backend that launches, of one that somebody may have wrapped."""
    while isinstance(backend, Wrapper):
        backend = backend.inner
    return backend


def launch(backend, name, grid, block, arguments, shared_bytes=0, **constants):
    gpu(backend).launch(name, grid, block, arguments, shared_bytes, **constants)


def empty(backend, shape, dtype=np.float32):
    return backend.xp.empty(shape, dtype)


def plain(backend, array, keep: bool = False):
    """The array in one piece, in float32; with `keep`, bfloat16 stays as it is."""
    dtype = BFLOAT16 if keep and array.dtype == BFLOAT16 else np.float32
    return backend.xp.ascontiguousarray(array, dtype)


def format_of(array) -> np.int32:
    return np.int32(FORMATS[array.dtype])


def as_matrix(backend, weight_OI) -> tuple | None:
    """A weight matrix as kernels take it: format, values, scales; None where it is in none of their formats."""
    if isinstance(weight_OI, Quantised):
        return format_of(weight_OI), weight_OI.values, weight_OI.scales
    if weight_OI.dtype not in (np.float32, BFLOAT16):
        return None
    return format_of(weight_OI), backend.xp.ascontiguousarray(weight_OI), None


def rows_at_once(weight_OI) -> int:
    """How many rows a block takes, see matrix.cuh."""
    return 16 if isinstance(weight_OI, Quantised) else 4


def is_small(weight_OI) -> bool:
    """Whether so few blocks would take the rows that they leave a large GPU idle: then more warps share each row."""
    return -(-weight_OI.shape[0] // rows_at_once(weight_OI)) < 4 * MULTIPROCESSORS


def threads_of(weight_OI) -> int:
    """How many threads a block has that multiplies rows by one token.

    Of few quantised rows as many as have all of them on their way at once, if possible: 32 words of each row a warp.
    """
    if not isinstance(weight_OI, Quantised) or not is_small(weight_OI):
        return 128
    return threads_for(weight_OI.values.shape[1], 512) if weight_OI.values.shape[1] > 128 else 128


def address(view) -> np.uint64:
    """Where a view begins, for a kernel that is told its strides besides: a launch refuses arrays with gaps."""
    if view is None:
        return np.uint64(0)
    return np.uint64(view.ctypes.data if isinstance(view, np.ndarray) else view.data.ptr)


def table(dtype: np.dtype, rows: list[tuple]) -> np.ndarray:
    """A struct with one array in it, for a kernel that takes it by value: a launch carries it, nobody copies it.

    >>> table(np.dtype([("first", np.int32), ("T", np.int32)]), [(0, 1), (1, 3)])["of"][:3].tolist()
    [(0, 1), (1, 3), (0, 0)]
    """
    struct = np.zeros((), [("of", dtype, SEQUENCES)])
    struct["of"][: len(rows)] = rows
    return struct


def threads_for(items: int, most: int = 1024) -> int:
    """Whole warps for that many pieces of work, up to a limit."""
    return min(most, max(32, -(-items // 32) * 32))


def blocks_for(items: int, threads: int = 256) -> int:
    """Blocks that take a piece of work a thread, up to as many as keep every GPU busy; each then takes several."""
    return max(1, min(-(-items // threads), 4096))
