"""Many tokens times a matrix in float32 or bfloat16: prefill, and decoding of several sequences together.

    y[t, o] = sum over i of x[t, i] * w[o, i]  (+ bias[o])

Each weight is read once and used T times, so from some dozen tokens on the arithmetic sets the speed. A multiply-add
wants two numbers; loading both for each would halve the speed at best. So sums are made in tiles of 16 outputs by 16
tokens that stay in registers: a step of the loop loads 16 weights and a vector of 16 tokens and does 256 multiply-adds.

Weights are used as they lie in the checkpoint, row by row: one number of each of 16 rows, broadcast to all lanes by the
instruction that multiplies it. Tokens are laid out for it (packed) once a call: 16 tokens side by side in the lanes.

                                                                        GFLOP/s, 128 tokens, 4864 x 896, one core
    v1  rows times vectors    matrix_vector for each token                              22
    v2  tiles                 a tile of sums in registers                              100   of 118 that the core can
    v3  bf16 pairs            two columns at once, by AVX512-BF16, which adds in       161   of 236
                              float32; tokens are rounded to bfloat16 for it           425   512 tokens, two cores
    v4  sent for              y's lines as a tile begins, and the next 16 rows      701 -> 843, two newer cores, as a
                              of w while this tile is computed                      part of a prompt's 256 tokens
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import overload

from backends.cpu.compiling import allocating, inner, within
from backends.cpu.packed_vector import unpack
from backends.cpu.simd import LANES, bf16_pairs, load, prefetch, store, zeros
from backends.cpu.team import launcher
from backends.cpu.tiles import load_tile, outer_bf16, outer_f32, send_for_sums, tile, transposed


@inner
@allocating
def packed_tokens(state, threads, x_TI):
    """Tokens in the lanes, 16 to a block; those of nothing, and columns of nothing, fill up the last tiles."""
    blocks, columns = tiles_of(x_TI)
    return packed_into(state, threads, x_TI, np.empty((blocks, columns, LANES), np.float32))


@inner
@allocating
def packed_tokens_in_pairs(state, threads, x_TI):
    """The same, two columns to a lane as a pair of bfloat16."""
    blocks, columns = tiles_of(x_TI)
    return packed_into(state, threads, x_TI, np.empty((blocks, columns // 2, LANES), np.int32))


@inner
@allocating
def packed_into(state, threads, x_TI, x_Bkt):
    blocks, columns = tiles_of(x_TI)
    if x_TI.shape == (blocks * LANES, columns):
        launch_packing(state, threads, blocks, x_TI, x_Bkt)
    else:
        launch_packing(state, threads, blocks, filled_up(x_TI), x_Bkt)
    return x_Bkt


@within
def tiles_of(x_TI):
    """How many blocks of tokens, and columns, whole tiles make of it."""
    return (x_TI.shape[0] + LANES - 1) // LANES, (x_TI.shape[1] + LANES - 1) // LANES * LANES


@inner
@allocating
def filled_up(x_TI):
    """With zeros to whole tiles."""
    blocks, columns = tiles_of(x_TI)
    filled_TI = np.zeros((blocks * LANES, columns), np.float32)
    filled_TI[: x_TI.shape[0], : x_TI.shape[1]] = x_TI
    return filled_TI


@inner
def pack(first, last, x_TI, x_Bkt):
    for b in range(first, last):
        for i in range(0, x_TI.shape[1], LANES):
            keep_columns(transposed(load_tile(x_TI, (b * LANES, i))), x_Bkt, b, i)


def keep_columns(columns, x_Bkt, b, i):
    """16 columns of a block from number i on, as numbers or in pairs."""


@overload(keep_columns, inline="always")
def _(columns, x_Bkt, b, i):
    def numbers(columns, x_Bkt, b, i):
        for n in range(LANES):
            store(x_Bkt, (b, i + n, 0), columns[n])

    def pairs(columns, x_Bkt, b, i):
        for n in range(0, LANES, 2):
            store(x_Bkt, (b, (i + n) // 2, 0), bf16_pairs(columns[n], columns[n + 1]))

    return numbers if x_Bkt.dtype == types.float32 else pairs


launch_packing = launcher(pack)


@inner
def rows_of_floats(first, last, w_OI, x_BIt, bias_O, y_TO):
    O = w_OI.shape[0]  # noqa: E741
    for part in range(first, last):
        o = min(part * LANES, O - LANES)  # the last tile reaches back and computes some rows a second time
        for b in range(x_BIt.shape[0]):
            tile_of_floats(w_OI, o, x_BIt[b], bias_O, y_TO, b * LANES)


@inner
def tile_of_floats(w_OI, o, x_It, bias_O, y_TO, t):
    send_for_sums(y_TO, t, LANES, o, LANES)
    sums = tile(16, zeros())
    for i in range(w_OI.shape[1]):
        prefetch(w_OI, (o + LANES, i * LANES))
        sums = outer_f32(sums, load(x_It, (i, 0)), w_OI, (o, i))
    finish(sums, o, bias_O, y_TO, t)


@inner
def rows_of_pairs(first, last, w_OP, x_BPt, bias_O, y_TO):
    O = w_OP.shape[0]  # noqa: E741
    for part in range(first, last):
        o = min(part * LANES, O - LANES)
        for b in range(x_BPt.shape[0]):
            tile_of_pairs(w_OP, o, x_BPt[b], bias_O, y_TO, b * LANES)


@inner
@allocating
def rows_of_packed(first, last, weight, x_BPt, bias_O, y_TO):
    """16 rows at a time are unpacked, for all tokens: a hundredth of the work if there are 512."""
    unpack_and_multiply(first, last, weight, np.empty((LANES, x_BPt.shape[1]), np.int32), x_BPt, bias_O, y_TO)


@inner
def unpack_and_multiply(first, last, weight, w_rP, x_BPt, bias_O, y_TO):
    """Apart, because what makes arrays counts references, also of those that threads share: 10 % of the time."""
    blocks_ONB = weight[0]
    O = len(blocks_ONB)  # noqa: E741
    for part in range(first, last):
        o = min(part * LANES, O - LANES)
        for r in range(LANES):
            unpack(weight, o + r, w_rP[r])
        for b in range(x_BPt.shape[0]):
            tile_of_unpacked(w_rP, blocks_ONB, x_BPt[b], bias_O, y_TO, b * LANES, o)


@inner
def tile_of_unpacked(w_rP, blocks_ONB, x_Pt, bias_O, y_TO, t, o):
    """As below; and the next 16 packed rows are sent for meanwhile, a line in each step: 12 bits are three of 16."""
    send_for_sums(y_TO, t, LANES, o, LANES)
    sums = tile(16, zeros())
    for p in range(w_rP.shape[1]):
        prefetch(blocks_ONB, (o + LANES, 0, p * 48))
        sums = outer_bf16(sums, load(x_Pt, (p, 0)), w_rP, (0, p))
    finish(sums, o, bias_O, y_TO, t)


@inner
def tile_of_pairs(w_OP, o, x_Pt, bias_O, y_TO, t):
    send_for_sums(y_TO, t, LANES, o, LANES)
    sums = tile(16, zeros())
    for p in range(w_OP.shape[1]):
        prefetch(w_OP, (o + LANES, p * LANES))
        sums = outer_bf16(sums, load(x_Pt, (p, 0)), w_OP, (o, p))
    finish(sums, o, bias_O, y_TO, t)


@inner
def finish(sums, o, bias_O, y_TO, t):
    """Turn the tile, so that each token's 16 outputs lie side by side, and write the rows that are tokens."""
    bias = zeros()
    if bias_O.size:
        bias = load(bias_O, o)
    rows = transposed(sums)
    for n in range(min(LANES, y_TO.shape[0] - t)):
        store(y_TO, (t + n, o), rows[n] + bias)
