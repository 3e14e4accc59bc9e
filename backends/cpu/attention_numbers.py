"""What attention multiplies: float32, or pairs of bfloat16. The same names for both, chosen by the arrays' types.

    scratch     cache                 what shares a lane in scratch memory
    float32     f32, bf16, int8       one number
    int32       int8                  numbers i and i + 16 of each run of 32
    int32       bf16, as int32        of queries and keys 2i and 2i + 1; of weights and values i and i + 16

A function without a body is a name; what follows it under `@overload` are its bodies, of which Numba compiles one.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import overload

from backends.cpu.compiling import body_of, inner
from backends.cpu.simd import (
    bf16_pairs,
    bits_as_i32,
    constant_i32,
    fill,
    interleave_high,
    interleave_low,
    load,
    load_part,
    prefetch,
    shuffle,
    store,
    store_part,
)  # fmt: skip
from backends.cpu.tiles import load_tile, outer_bf16, outer_f32, transposed

FLOATS, PAIRS = 0.0, 0  # what numbers are multiplied as; kernels are compiled for the type

sixteen, upper_half = constant_i32(16), constant_i32(-0x10000)
even, odd = shuffle(tuple(range(0, 32, 2))), shuffle(tuple(range(1, 32, 2)))
first_half, second_half = (
    shuffle(tuple(start + lane % 4 + 4 * (lane // 8) + 16 * (lane // 4 % 2) for lane in range(16))) for start in (0, 8)
)


def is_floats(scratch):
    return scratch.dtype == types.float32


def has_neighbours(cache):
    return cache.dtype == types.int32


def scratch(rows, shape):
    """Memory for packed numbers: float32 if `rows` is a tuple of floats, int32 if it is one of integers."""


@body_of(scratch, allocates=True)
def _(rows, shape):
    if rows.dtype == types.float64:
        return lambda rows, shape: np.empty(shape, np.float32)
    return lambda rows, shape: np.empty(shape, np.int32)


def lanes_of(count, packed):
    """How many lanes that many numbers take."""


@overload(lanes_of, inline="always")
def _(count, packed):
    if is_floats(packed):
        return lambda count, packed: count
    return lambda count, packed: (count + 31) // 32 * 16


def add_outer(sums, vector, packed, index):
    """`tiles.outer` with the product of that kind."""


@overload(add_outer, inline="always")
def _(sums, vector, packed, index):
    if is_floats(packed):
        return lambda sums, vector, packed, index: outer_f32(sums, vector, packed, index)
    return lambda sums, vector, packed, index: outer_bf16(sums, vector, packed, index)


def send_for(x_SK, s, line):
    """Prefetch that one of the 64-byte lines from row s on; in a cache, rows of a KV head lie end to end."""


@overload(send_for, inline="always")
def _(x_SK, s, line):
    numbers = 512 // x_SK.dtype.bitwidth
    return lambda x_SK, s, line: prefetch(x_SK, (s, line * numbers))


def pack_query(q_THK, t, h, k_SK, q_nk, n):
    """A query times 1 / sqrt(K), as row n."""


@body_of(pack_query)
def _(q_THK, t, h, k_SK, q_nk, n):
    def floats(q_THK, t, h, k_SK, q_nk, n):
        K = q_THK.shape[2]
        scale = fill(np.float32(1 / np.sqrt(K)))
        for k in range(0, K, 16):
            store(q_nk, (n, k), load_part(q_THK, (t, h, k), K - k) * scale)

    def pairs(q_THK, t, h, k_SK, q_nk, n):
        K = q_THK.shape[2]
        scale = fill(np.float32(1 / np.sqrt(K)))
        for k in range(0, K, 32):
            low, high = load(q_THK, (t, h, k)) * scale, load(q_THK, (t, h, k + 16)) * scale
            store(q_nk, (n, k // 2), bf16_pairs(low, high))

    def neighbours(q_THK, t, h, k_SK, q_nk, n):
        K = q_THK.shape[2]
        scale = fill(np.float32(1 / np.sqrt(K)))
        for k in range(0, K, 32):
            low, high = load(q_THK, (t, h, k)) * scale, load(q_THK, (t, h, k + 16)) * scale
            store(q_nk, (n, k // 2), bf16_pairs(even(low, high), odd(low, high)))

    if is_floats(q_nk):
        return floats
    return neighbours if has_neighbours(k_SK) else pairs


def pack_keys(k_SK, s, count, k_Bks, stage_sK):
    """`count` keys from s on, turned: k_Bks[b, i] has lane i of 16 keys. Behind the last key it stands again."""


@body_of(pack_keys)
def _(k_SK, s, count, k_Bks, stage_sK):
    def directly(k_SK, s, count, k_Bks, stage_sK):
        K = k_SK.shape[1]
        for b in range((count + 15) // 16):
            left = count - 16 * b
            if left < 16 or K % 16:  # no whole tile: by way of memory that is one
                for i in range(16):
                    for k in range(0, K, 16):
                        store(stage_sK, (i, k), load_part(k_SK, (s + 16 * b + min(i, left - 1), k), K - k))
                for k in range(0, K, 16):
                    turn(stage_sK, 0, k, k_Bks, b)
            else:
                for k in range(0, K, 16):
                    turn(k_SK, s + 16 * b, k, k_Bks, b)

    def paired(k_SK, s, count, k_Bks, stage_sK):
        K = k_SK.shape[1]
        for b in range((count + 15) // 16):
            for i in range(16):
                row = s + min(16 * b + i, count - 1)
                for k in range(0, K, 32):
                    store(stage_sK, (i, k // 2), exact_pairs(load(k_SK, (row, k)), load(k_SK, (row, k + 16))))
            for k in range(0, K // 2, 16):
                turn(stage_sK, 0, k, k_Bks, b)

    return directly if is_floats(k_Bks) or has_neighbours(k_SK) else paired


@inner
def turn(x_SK, s, k, k_Bks, b):
    columns = transposed(load_tile(x_SK, (s, k)))
    for i in range(16):
        store(k_Bks, (b, k + i, 0), columns[i])


@inner
def exact_pairs(low, high):
    """Pairs of numbers that are bfloat16 already, as whole numbers up to 256 are."""
    return (bits_as_i32(low) >> sixteen()) | (bits_as_i32(high) & upper_half())


def pack_values(v_SK, s, count, v_sK):
    """`count` values from s on, and zeros behind them."""


@body_of(pack_values, allocates=True)
def _(v_SK, s, count, v_sK):
    def as_they_are(v_SK, s, count, v_sK):
        K = v_SK.shape[1]
        if K % 16 == 0:
            return v_SK[s : s + count]
        for i in range(count):
            for k in range(0, K, 16):
                store(v_sK, (i, k), load_part(v_SK, (s + i, k), K - k))
        return v_sK[:, : v_sK.shape[1]]

    def widened(v_SK, s, count, v_sK):
        K = v_SK.shape[1]
        for i in range(count):
            for k in range(0, K, 16):
                store(v_sK, (i, k), load_part(v_SK, (s + i, k), K - k))
        return v_sK

    def pairs(v_SK, s, count, v_sK):
        for run in range(0, count, 32):
            for i in range(run, run + 16):
                lows, highs = s + min(i, count - 1), s + min(i + 16, count - 1)
                some, both = 16 * (i < count), 16 * (i + 16 < count)
                for k in range(0, v_SK.shape[1], 16):
                    low, high = load_part(v_SK, (lows, k), some), load_part(v_SK, (highs, k), both)
                    store(v_sK, (run // 2 + i % 32, k), exact_pairs(low, high))
        return v_sK

    def neighbours(v_SK, s, count, v_sK):
        for run in range(0, count, 32):
            for i in range(run, run + 16):
                lows, highs = s + min(i, count - 1), s + min(i + 16, count - 1)
                some, both = 16 * (i < count), 16 * (i + 16 < count)
                for k in range(0, v_SK.shape[1], 16):
                    low, high = load_part(v_SK, (lows, k), some), load_part(v_SK, (highs, k), both)
                    row = run // 2 + i % 32
                    store(v_sK, (row, 2 * k), interleave_low(low, high))
                    store(v_sK, (row, 2 * k + 16), interleave_high(low, high))
        return v_sK

    if is_floats(v_sK):
        return as_they_are if is_floats(v_SK) else widened
    return neighbours if has_neighbours(v_SK) else pairs


def scaled(vector, scale_GS, g, s, count):
    """Numbers that belong to `count` keys from s on, times those keys' scales, if they have any."""


@overload(scaled, inline="always")
def _(vector, scale_GS, g, s, count):
    if scale_GS is None or scale_GS == types.none:
        return lambda vector, scale_GS, g, s, count: vector
    return lambda vector, scale_GS, g, s, count: vector * load_part(scale_GS, (g, s), count)


def pack_weights(low, high, weight_rs, r, s):
    """Weights s .. s + 32 of row r."""


@overload(pack_weights, inline="always")
def _(low, high, weight_rs, r, s):
    def floats(low, high, weight_rs, r, s):
        store(weight_rs, (r, s), low)
        store(weight_rs, (r, s + 16), high)

    def pairs(low, high, weight_rs, r, s):
        store(weight_rs, (r, s // 2), bf16_pairs(low, high))

    return floats if is_floats(weight_rs) else pairs


def write_row(low, high, k_SGK, out_THK, t, h, k):
    """32 numbers of a row of the result, in their own order."""


@body_of(write_row)
def _(low, high, k_SGK, out_THK, t, h, k):
    def in_order(low, high, k_SGK, out_THK, t, h, k):
        left = out_THK.shape[2] - k
        store_part(out_THK, (t, h, k), low, left)
        store_part(out_THK, (t, h, k + 16), high, left - 16)

    def neighbours(low, high, k_SGK, out_THK, t, h, k):
        store(out_THK, (t, h, k), first_half(low, high))
        store(out_THK, (t, h, k + 16), second_half(low, high))

    return neighbours if has_neighbours(k_SGK) else in_order
