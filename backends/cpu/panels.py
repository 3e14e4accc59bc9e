"""Products of thousands of tokens, as in training: a @ b, and a^T @ b, for whole tiles of 16 columns.

Both keep a tile of 16 x 16 sums in registers, as `matrix_matrix` does, and read b with the lanes of a vector along its
rows. With thousands of tokens it is the other matrix that may be rearranged for nothing. What is broadcast is a:

    a @ b      out[t, i] = sum over o of a[t, o] b[o, i]      16 rows of a, one number of each
    a^T @ b    out[o, i] = sum over t of a[t, o] b[t, i]      16 neighbours in a row of a

What is broadcast is staged first, in rows that are no power of two apart: they would drive each other out of the cache.

Sums longer than 256 are made in parts, so that what many tiles read stays in the near caches.

What is no whole tile is filled up with zeros. NumPy's own product would do for the few rows that are left, but its
threads wait for the next one by turning in circles on the other cores: a step of training with two threads took 350 ms
with them and takes 220 without.

                                    GFLOP/s, 4096 tokens, one core     192 x 192    512 x 192    192 x 1536
    matrix_matrix                                                        84-88        98           84
    OpenBLAS 0.3.31                                                      96           96           99
    a @ b, a^T @ b                                                       100-110      96-107       93-99
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.rows import F32
from backends.cpu.simd import LANES, load, store
from backends.cpu.team import shared
from backends.cpu.tiles import load_tile, outer_f32, store_tile, tile

ROWS, DEPTH = 64, 256  # of what is staged: 64 KB; a panel of b, 16 KB, is used for four tiles each time that it comes


def times(a_TO, b_OI, bias_I=None):
    """a @ b + bias, for whole tiles of columns."""
    (T, O), I = a_TO.shape, b_OI.shape[1]  # noqa: E741
    bias_I = np.zeros(I, F32) if bias_I is None else bias_I
    b_POl = np.ascontiguousarray(b_OI.reshape(O, I // LANES, LANES).swapaxes(0, 1))  # panels of 16 columns
    out_TI, whole = np.empty((T, I), F32), T - T % LANES
    times_rows(-(-whole // ROWS), a_TO[:whole], b_POl, bias_I, out_TI)
    if whole < T:
        rest_tI = np.empty((LANES, I), F32)
        times_rows(1, filled_up(a_TO[whole:]), b_POl, bias_I, rest_tI)
        out_TI[whole:] = rest_tI[: T - whole]
    return out_TI


def transposed_times(a_TO, b_TI):
    """a^T @ b, for whole tiles of columns."""
    O, I = a_TO.shape[1], b_TI.shape[1]  # noqa: E741
    out_OI = np.zeros((O, I), F32)
    transposed_times_rows(O // LANES, a_TO, b_TI, out_OI)
    return out_OI


def filled_up(x_RC):
    """With zeros, to whole tiles both ways."""
    (R, C), filled = x_RC.shape, [-(-size // LANES) * LANES for size in x_RC.shape]
    if filled == [R, C]:
        return x_RC
    filled_RC = np.zeros(filled, F32)
    filled_RC[:R, :C] = x_RC
    return filled_RC


@shared
@kernel
@allocating
def times_rows(first, last, a_TO, b_POl, bias_I, out_TI):
    T, O = a_TO.shape  # noqa: E741
    stage_tO = np.empty((ROWS, DEPTH + LANES), np.float32)
    for block in range(first, last):
        begin, end = block * ROWS, min((block + 1) * ROWS, T)
        for o in range(0, O, DEPTH):
            depth = min(DEPTH, O - o)
            for t in range(begin, end):
                for n in range(0, depth, LANES):
                    store(stage_tO, (t - begin, n), load(a_TO, (t, o + n)))
            for panel in range(b_POl.shape[0]):
                for t in range(begin, end, LANES):
                    times_tile(stage_tO, t - begin, b_POl[panel], o, depth, bias_I, out_TI, t, panel * LANES)


@inner
def times_tile(a_tO, row, b_Ol, o, depth, bias_I, out_TI, t, i):
    sums = tile(16, load(bias_I, i))
    if o > 0:
        sums = load_tile(out_TI, (t, i))
    for n in range(depth):
        sums = outer_f32(sums, load(b_Ol, (o + n, 0)), a_tO, (row, n))
    store_tile(out_TI, (t, i), sums)


@shared
@kernel
@allocating
def transposed_times_rows(first, last, a_TO, b_TI, out_OI):
    T, I = b_TI.shape  # noqa: E741
    stage_1to = np.empty((1, DEPTH, LANES), np.float32)
    for t in range(0, T, DEPTH):
        depth = min(DEPTH, T - t)
        for panel in range(first, last):
            for n in range(depth):
                store(stage_1to, (0, n, 0), load(a_TO, (t + n, panel * LANES)))
            for i in range(0, I, LANES):
                transposed_times_tile(stage_1to, depth, b_TI, t, i, out_OI, panel * LANES)


@inner
def transposed_times_tile(a_1to, depth, b_TI, t, i, out_OI, o):
    sums = load_tile(out_OI, (o, i))
    for n in range(depth):
        sums = outer_f32(sums, load(b_TI, (t + n, i)), a_1to, (0, n))
    store_tile(out_OI, (o, i), sums)
