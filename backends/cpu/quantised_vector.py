"""One token times a matrix in int8 or int4: see `backends/quantised.py` for what the numbers mean and how they lie.

    y[o] = sum over groups g of  w_scale[o, g] * x_scale[g] * sum over i in g of (w[o, i] - zero) * x[i]

The inner sum is over whole numbers: the token is rounded, too, each group of 32 with a scale of its own. Beside int8 it
gets 16 bits, which lose nothing that matters (3e-5 of a group's largest number) and cost nothing: the memory sets the
speed. Beside int4 each byte that is read gives twice the arithmetic, and 16 bits would cost 13 %: it gets 8, which lose
0.4 % where the weights have lost 8 %. (llama.cpp takes 8 bits for both.) `zero` is taken off in one number a group:
-zero * sum of x over it, where the sum starts.

16 rows lie side by side, so each lane adds up its own row: no sums across lanes, and a group's 16 scales are one load.

                                                                      one core, int8 / int4, 4864 x 896
    v1  plain loop         one weight at a time                         1.2 /  0.6 GB/s
    v2  widened            to float32, then multiplied: what runs      14.4 /  7.6
                           where there is no VNNI
    v3  whole numbers      AVX512-VNNI, scaled once a group            24.2 / 22.3

                                                                      two cores, all layers of the 0.5B in int4
    v3  a token in 16 bits                                             27.0
    v4  in 8 bits                                                      30.6

                                                                      two newer cores that share no cache, int4 / int8
                                                                      896 x 4864        4864 x 896, GB/s of 79
    v5  sent for           4 KB before they are used                    56 -> 63 / 64 -> 67
    v6  uncounted          no references counted (compiling.py)         53 -> 56            33 -> 59
    v7  8 KB ahead         a token of the 0.5B 4.43 -> 4.35 ms in int4, 6.70 -> 6.67 in int8
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, kernel, within
from backends.cpu.simd import (
    LANES,
    dot_i16,
    dot_u8_i8,
    fill,
    fill_i32,
    fma,
    largest_magnitude,
    load,
    load_one,
    load_part,
    nearest,
    prefetch,
    shuffle,
    store,
    store_i8,
    store_part,
    sum_of,
    to_f32,
    to_i32,
    zeros,
)  # fmt: skip
from backends.quantised import GROUP

AHEAD = 128  # lines of a matrix, 8 KB, that are sent for before they are used; the next tile's follow this one's


@kernel
def inverse(scale):
    """1 / scale, and 0 for a group of zeros or of numbers below 1e-34, which count as zeros."""
    return np.float32(1) / scale if scale > np.float32(3e-39) else np.float32(0)


# ---- int8 weights: the token in 16 bits ------------------------------------------------------------------------------

# In memory a lane holds columns 0 1 2 3. Masked as 16-bit numbers that gives the pairs (0, 2) and (1, 3): the token's
# numbers are paired likewise.
low_halves = shuffle(tuple(4 * m + n for m in range(8) for n in (0, 1)))
high_halves = shuffle(tuple(4 * m + n for m in range(8) for n in (2, 3)))


@inner
@allocating
def round_to_16(x_I):
    """A token's numbers as pairs of int16, a group's 32 as 16 pairs in the order of the weights; scales; starts."""
    G = x_I.size // GROUP
    x_j, scale_G, start_G = np.empty(G * 16, np.int32), np.empty(G, np.float32), np.empty(G, np.int32)
    half, up = fill_i32(np.int32(0xFFFF)), fill_i32(np.int32(16))
    for g in range(G):
        a, b = load(x_I, g * 32), load(x_I, g * 32 + 16)
        scale_G[g] = largest_magnitude(a, b) / np.float32(32767)
        factor = fill(inverse(scale_G[g]))
        a, b = nearest(a * factor), nearest(b * factor)
        start_G[g] = np.int32(-128 * sum_of(a + b))
        a, b = to_i32(a), to_i32(b)
        store(x_j, g * 16, (low_halves(a, b) & half) | (high_halves(a, b) << up))
    return x_j, scale_G, start_G


@inner
def rows_8(values_PQr, scales_PGr, p, x_j, scale_G, start_G):
    """16 rows of int8 times a token: each 32-bit lane is split into its even and its odd bytes."""
    even, byte = fill_i32(np.int32(0x00FF00FF)), fill_i32(np.int32(8))
    total = zeros()
    for g in range(scale_G.size):
        whole = fill_i32(start_G[g])
        for q in range(g * 8, g * 8 + 8):
            prefetch(values_PQr, (p, q + AHEAD, 0))
            weights = load(values_PQr, (p, q, 0))
            whole = dot_i16(whole, weights & even, load_one(x_j, 2 * q))
            whole = dot_i16(whole, (weights >> byte) & even, load_one(x_j, 2 * q + 1))
        total = fma(to_f32(whole), load(scales_PGr, (p, g, 0)) * fill(scale_G[g]), total)
    return total


# ---- int4 weights: the token in 8 bits -------------------------------------------------------------------------------


@inner
@allocating
def round_to_8(x_I):
    """A token's numbers as int8, four neighbours to a lane; scales; starts."""
    G = x_I.size // GROUP
    x_I8, scale_G, start_G = np.empty(G * GROUP, np.int8), np.empty(G, np.float32), np.empty(G, np.int32)
    round_row(x_I, x_I8, scale_G, start_G, 8)
    return x_I8.view(np.int32), scale_G, start_G


@inner
def round_row(x_I, x_I8, scale_G, start_G, zero):
    for g in range(scale_G.size):
        a, b = load(x_I, g * 32), load(x_I, g * 32 + 16)
        scale_G[g] = largest_magnitude(a, b) / np.float32(127)
        factor = fill(inverse(scale_G[g]))
        a, b = nearest(a * factor), nearest(b * factor)
        start_G[g] = np.int32(-zero * sum_of(a + b))
        store_i8(x_I8, g * 32, to_i32(a))
        store_i8(x_I8, g * 32 + 16, to_i32(b))


@within
def group_4(values_PQr, p, g, x_Q, start, half_a_byte, n4):
    """16 rows' sums over a group: a lane's bytes hold columns 0 to 3 in their lower halves, 4 to 7 in the upper."""
    whole = fill_i32(start)
    for q in range(g * 4, g * 4 + 4):
        prefetch(values_PQr, (p, q + AHEAD, 0))
        weights = load(values_PQr, (p, q, 0))
        whole = dot_u8_i8(whole, weights & half_a_byte, load_one(x_Q, 2 * q))
        whole = dot_u8_i8(whole, (weights >> n4) & half_a_byte, load_one(x_Q, 2 * q + 1))
    return whole


@inner
def rows_4(values_PQr, scales_PGr, p, x_Q, scale_G, start_G):
    """16 rows of int4 times a token."""
    half_a_byte, n4 = fill_i32(np.int32(0x0F0F0F0F)), fill_i32(np.int32(4))
    total = zeros()
    for g in range(scale_G.size):
        whole = group_4(values_PQr, p, g, x_Q, start_G[g], half_a_byte, n4)
        total = fma(to_f32(whole), load(scales_PGr, (p, g, 0)) * fill(scale_G[g]), total)
    return total


@inner
def finish_rows(total, p, bias_O, y_O):
    """Add the bias and write the 16 rows, or those that are not filling."""
    o, count = p * LANES, min(LANES, y_O.size - p * LANES)
    if bias_O.size:
        total = total + load_part(bias_O, o, count)
    store_part(y_O, o, total, count)
