"""Drawing a sketch (`backends/sketch.py`), the same numbers as its definition: 0.24 ns a weight instead of 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.cpu.compiling import allocating, kernel
from backends.cpu.simd import (
    LANES,
    constant,
    fill,
    fma,
    largest_magnitude,
    load,
    nearest,
    store_i8,
    sum_of,
    to_i32,
    zeros,
)  # fmt: skip
from backends.cpu.take_rows import unpack_rows
from backends.packed import Packed
from backends.quantised import GROUP, PIECE, ROWS, Quantised
from backends.sketch import LEAST, LEVELS, Sketch, empty_sketch, whole_tiles

eight = constant(8.0)
SEVEN, TINY = np.float32(LEVELS), np.float32(LEAST)


def drawn(matrix: Any, room: Callable = np.empty, before: Callable[[], None] = lambda: None) -> Sketch | None:
    """A sketch of a matrix of any format; None if it has rows for which there is no bound.

    room     called as room(shape, dtype) for the memory in which it will lie
    before   called before each piece of the matrix is read
    """
    sketch = empty_sketch(matrix.shape, room)
    step = max(1, PIECE // (ROWS * matrix.shape[1])) * ROWS
    for start in range(0, len(matrix), step):
        before()
        add_rows(sketch, start, rows_of(matrix, start, min(start + step, len(matrix))))
    try:
        sketch.check()
    except ValueError:
        return None
    for array in (sketch.rough.values, sketch.rough.scales, sketch.norm_PR, sketch.dither_I):
        array.flags.writeable = False  # as all weights are
    return sketch


def rows_of(matrix: Any, start: int, stop: int) -> np.ndarray:
    """Rows start to stop, which begins a tile, in float32."""
    if isinstance(matrix, Packed):
        rows_NI = np.empty((stop - start, matrix.shape[1]), np.float32)
        unpack_rows(matrix.as_kernels_take, np.arange(start, stop), rows_NI)
        return rows_NI
    some = matrix.tiles(start, stop) if isinstance(matrix, Quantised) else matrix[start:stop]
    return some.astype(np.float32)


def add_rows(sketch: Sketch, first: int, rows_NI: np.ndarray) -> None:
    """As `backends.sketch.add_rows`."""
    rows_NI = whole_tiles(sketch, rows_NI)
    some = sketch.tiles(first, first + len(rows_NI))
    values_PQr, scales_PGr = some.rough.lanes
    draw(rows_NI, sketch.dither_I, values_PQr, scales_PGr, some.norm_PR)


@kernel
@allocating
def draw(rows_NI, dither_I, values_PQr, scales_PGr, norm_Pr):
    step, code_i = np.empty(1, np.float32), np.empty(GROUP, np.int8)
    bits, word_Q = step.view(np.uint32), code_i.view(np.uint32)
    for n in range(len(rows_NI)):
        p, r, squares = n // LANES, n % LANES, zeros()
        for g in range(scales_PGr.shape[1]):
            a, b = load(rows_NI, (n, g * GROUP)), load(rows_NI, (n, g * GROUP + LANES))
            squares = fma(a, a, fma(b, b, squares))
            step[0] = max(largest_magnitude(a, b) / SEVEN, TINY)
            bits[0] = bits[0] + np.uint32(0xFFFF) & np.uint32(0xFFFF0000)  # up to the next bfloat16
            scales_PGr[p, g, r] = bits[0] >> 16
            divisor = fill(step[0])
            a = nearest(a / divisor + load(dither_I, g * GROUP)) + eight()
            b = nearest(b / divisor + load(dither_I, g * GROUP + LANES)) + eight()
            store_i8(code_i, 0, to_i32(a))
            store_i8(code_i, LANES, to_i32(b))
            for q in range(4):
                values_PQr[p, g * 4 + q, r] = word_Q[2 * q] | word_Q[2 * q + 1] << np.uint32(4)
        norm_Pr[p, r] = np.sqrt(sum_of(squares))
