"""One token times a bfloat16 matrix in 12 bits a number (`backends/packed.py`): decoding, from a quarter fewer bytes.

    y[o] = sum over i of w[o, i] * x[i]  (+ bias[o])

The weights come back as the very bfloat16 that they were, 64 at once: their codes are looked up in a table of 16 upper
bytes, and interleaved with the lower bytes. What then happens is what `matrix_vector.py` does, sum by sum, so results
are the same to the last bit.

                                             two cores, all layers in turns: tokens for each of bfloat16 as it lies
                                             0.5B, a read: 34 GB/s   0.5B, 54   1.5B, 36   1.5B, 60
    v1  4 bits of exponent, shifted                                 1.13       1.10       1.00
    v2  a table of upper bytes, and wide                            0.99       1.25       1.17
        rows in pieces
    v3  no call for each row                 1.25                   1.16       1.29       1.31

Short rows were sent for 5 blocks ahead, which was best on those machines. On two newer cores with a cache each, of 80
GB/s, 48 blocks (9 KB) take 4864 x 896 from 58 to 71 GB/s, and a token of the 0.5B from 11.4 ms to 10.3.

The call cost as much as half a row: ten arrays are 60 numbers to hand over. From the nearest caches two cores unpack 42
GB/s in v2, 69 in v3; a third more would be the most that memory can gain from three quarters of the bytes.

Wide rows: a token of 8960 numbers takes 36 KB in two halves, more than the nearest cache. So rows are taken in pieces,
16 at a time, for which a piece of the token stays there.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, within
from backends.cpu.simd import (
    LANES,
    constant_i32,
    dot_bf16,
    fill_i32,
    interleave_high_bytes,
    interleave_low_bytes,
    load,
    load_bytes,
    look_up,
    prefetch,
    store,
    sum_of,
    zeros,
)  # fmt: skip
from backends.packed import CODES

# Blocks sent for before they are needed: short rows, longer ones, those in pieces. None of it follows from a datasheet;
# where it is used, each is as fast as the other two or up to 30 % faster.
SHORT, NEAR, AHEAD, FAR = 16, 48, 32, 150
WIDE, PIECE, ROWS = 48, 32, 16  # blocks of a row that is taken in pieces, and of a piece; rows taken together then
half, four_bits = constant_i32(4), constant_i32(0x0F0F_0F0F)
FIRST_TABLE = np.array([(n & 8) << 4 | n & 7 for n in range(16)] * 4, np.uint8)  # the upper bytes, if the base is 0


@within
def table_of(base_O, o):
    return load_bytes(FIRST_TABLE, 0) + fill_i32(np.int32(base_O[o]) * np.int32(0x0101_0101))


@within
def unpack_block(blocks_ONB, o, n, table):
    """128 bfloat16, in pairs."""
    codes = load_bytes(blocks_ONB, (o, n, 0))
    lower, upper = load_bytes(blocks_ONB, (o, n, CODES)), look_up(table, codes & four_bits())
    a, b = interleave_low_bytes(lower, upper), interleave_high_bytes(lower, upper)
    lower, upper = load_bytes(blocks_ONB, (o, n, CODES + 64)), look_up(table, (codes >> half()) & four_bits())
    return a, b, interleave_low_bytes(lower, upper), interleave_high_bytes(lower, upper)


@within
def add_products(sums, blocks, high_j, low_j, j):
    """A block's four vectors times the token's upper and lower halves. Eight sums: none waits for the one before it."""
    (w, x, y, z), (a, b, c, d, e, f, g, h) = blocks, sums
    a, e = dot_bf16(a, w, load(high_j, j)), dot_bf16(e, w, load(low_j, j))
    b, f = dot_bf16(b, x, load(high_j, j + 16)), dot_bf16(f, x, load(low_j, j + 16))
    c, g = dot_bf16(c, y, load(high_j, j + 32)), dot_bf16(g, y, load(low_j, j + 32))
    d, h = dot_bf16(d, z, load(high_j, j + 48)), dot_bf16(h, z, load(low_j, j + 48))
    return a, b, c, d, e, f, g, h


@within
def add_blocks(sums, weight, o, first, last, token, ahead):
    """Row o's blocks first to last - 1 times the token, added to the sums; those so far `ahead` are sent for."""
    blocks_ONB, base_O, start_O1, place_R, raw_RJ = weight
    high_j, low_j = token
    table, r, end = table_of(base_O, o), start_O1[o], start_O1[o + 1]
    while r < end and place_R[r] < first:
        r += 1
    while first < last:
        stop = min(place_R[r], last) if r < end else last
        for n in range(first, stop):
            for byte in range(0, 192, 64):
                prefetch(blocks_ONB, (o, n + ahead, byte))
            sums = add_products(sums, unpack_block(blocks_ONB, o, n, table), high_j, low_j, n * 64)
        if stop < last:  # a block that was kept as it was
            raw = load(raw_RJ, (r, 0)), load(raw_RJ, (r, 16)), load(raw_RJ, (r, 32)), load(raw_RJ, (r, 48))
            sums = add_products(sums, raw, high_j, low_j, stop * 64)
            r += 1
        first = stop + 1
    return sums


@within
def all_in_one(sums):
    a, b, c, d, e, f, g, h = sums
    return sum_of(((a + b) + (c + d)) + ((e + f) + (g + h)))


@within
def row_times_vector(weight, o, token):
    no_sums = zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
    N = weight[0].shape[1]
    return all_in_one(add_blocks(no_sums, weight, o, 0, N, token, NEAR if N <= SHORT else AHEAD))


@inner
def packed_times_vector(first, last, weight, token, bias_O, y_O):
    """y_O = weight @ token + bias_O in rows first to last - 1."""
    if weight[0].shape[1] <= WIDE:
        for o in range(first, last):
            y_O[o] = row_times_vector(weight, o, token)
    else:
        wide_rows_times_vector(first, last, weight, token, y_O)
    if bias_O.size:
        for o in range(first, last):
            y_O[o] += bias_O[o]


@inner
@allocating
def wide_rows_times_vector(first, last, weight, token, y_O):
    in_pieces(first, last, weight, token, np.empty((ROWS, 8, LANES), np.float32), y_O)


@inner
def in_pieces(first, last, weight, token, sums_RVC, y_O):
    """Some rows piece by piece: each piece of the token stays in the nearest cache for all of them."""
    N = weight[0].shape[1]
    for top in range(first, last, ROWS):
        sums_RVC[:] = 0
        for n in range(0, N, PIECE):
            for o in range(top, min(top + ROWS, last)):
                r = o - top
                sums = (
                    load(sums_RVC, (r, 0, 0)), load(sums_RVC, (r, 1, 0)), load(sums_RVC, (r, 2, 0)),
                    load(sums_RVC, (r, 3, 0)), load(sums_RVC, (r, 4, 0)), load(sums_RVC, (r, 5, 0)),
                    load(sums_RVC, (r, 6, 0)), load(sums_RVC, (r, 7, 0)),
                )  # fmt: skip
                sums = add_blocks(sums, weight, o, n, min(n + PIECE, N), token, FAR)
                y_O[o] = all_in_one(sums)
                a, b, c, d, e, f, g, h = sums
                store(sums_RVC, (r, 0, 0), a)
                store(sums_RVC, (r, 1, 0), b)
                store(sums_RVC, (r, 2, 0), c)
                store(sums_RVC, (r, 3, 0), d)
                store(sums_RVC, (r, 4, 0), e)
                store(sums_RVC, (r, 5, 0), f)
                store(sums_RVC, (r, 6, 0), g)
                store(sums_RVC, (r, 7, 0), h)


@inner
def unpack(weight, o, out_J):
    """Row o in pairs of bfloat16."""
    blocks_ONB, base_O, start_O1, place_R, raw_RJ = weight
    table = table_of(base_O, o)
    for n in range(blocks_ONB.shape[1]):
        (w, x, y, z), j = unpack_block(blocks_ONB, o, n, table), n * 64
        store(out_J, j, w)
        store(out_J, j + 16, x)
        store(out_J, j + 32, y)
        store(out_J, j + 48, z)
    for r in range(start_O1[o], start_O1[o + 1]):
        for j in range(64):  # in a loop: what NumPy's slices can raise takes two seconds to compile
            out_J[place_R[r] * 64 + j] = raw_RJ[r, j]
