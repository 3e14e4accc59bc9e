"""Tokens times a matrix in int8 or int4: see `backends/quantised.py` for what the numbers mean and how they lie.

    y[t, o] = sum over groups g of  w_scale[o, g] * x_scale[t, g] * sum over i in g of (w[o, i] - zero) * x[t, i]

The inner sum is over whole numbers: the tokens are rounded, too, each group of 32 with a scale of its own. One token is
rounded to 16 bits, which loses nothing that matters (3e-5 of a group's largest number): the memory sets the speed, and
the wider numbers come for free. Many tokens are rounded to 8 bits, because arithmetic sets the speed and AVX512-VNNI
multiplies four pairs of bytes a lane and step where bf16 multiplies two. llama.cpp rounds to 8 bits in both cases.

16 rows lie side by side, so each lane adds up its own row: no sums across lanes, and a group's 16 scales are one load.
`zero` is taken off in one number a group and token: -zero * sum of x over the group, where the sum starts.

                                                                      one core, int8 / int4, 4864 x 896
    v1  plain loop         one weight at a time                       one token         1.2 /  0.6 GB/s
    v2  widened            to float32, then multiplied: what runs     one token        14.4 /  7.6
                           where there is no VNNI                     128 tokens         32 / 28   GFLOP/s
    v3  whole numbers      AVX512-VNNI, scaled once a group           one token        24.2 / 22.3 GB/s
    v4  tiles              8 tokens, each weight loaded once for 8    128 tokens        273 / 265  GFLOP/s
                           on two cores                               512 tokens        620 / 620
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import inner, kernel
from backends.cpu.simd import (
    LANES,
    dot_i16,
    fill,
    fill_i32,
    fma,
    largest_magnitude,
    load,
    load_one,
    load_part,
    nearest,
    shuffle,
    store,
    store_part,
    sum_of,
    to_f32,
    to_i32,
    zeros,
)  # fmt: skip
from backends.cpu.team import launcher, shared, with_team
from backends.cpu.tiles import add_scaled, load_column, outer_u8_i8, tile
from backends.quantised import GROUP, Quantised

TOKENS = 8  # of a tile; 12 and 14 are no faster


def matrix_quantised(weight: Quantised, x_TI, bias_O, y_TO, *, vnni: bool):
    """y_TO = x_TI @ weight.T + bias_O."""
    values_PQr, scales_PGr = weight.lanes
    T, width = len(x_TI), scales_PGr.shape[1] * GROUP
    if x_TI.shape[1] != width:
        filled_TI = np.zeros((T, width), np.float32)
        filled_TI[:, : x_TI.shape[1]] = x_TI
        x_TI = filled_TI
    if not vnni:
        multiply_widened(len(values_PQr), values_PQr, scales_PGr, weight.bits, x_TI, bias_O, y_TO)
    elif T == 1:
        multiply = multiply_8 if weight.bits == 8 else multiply_4
        multiply(values_PQr, scales_PGr, x_TI, bias_O, y_TO)
    else:
        multiply = multiply_tokens_8 if weight.bits == 8 else multiply_tokens_4
        rounded = round_tokens(x_TI, 1 << weight.bits - 1)
        multiply(len(values_PQr), values_PQr, scales_PGr, *rounded, bias_O, y_TO)


# ---- one token: 16 bits --------------------------------------------------------------------------------------------

# In memory a lane holds columns 0 1 2 3 (int8) or 0|4 1|5 2|6 3|7 (int4, a byte's two halves). Masked as 16-bit numbers
# that gives the pairs (0, 2) and (1, 3), or (0, 2) (4, 6) (1, 3) (5, 7): the token's numbers are paired likewise.
low_8 = shuffle(tuple(4 * m + n for m in range(8) for n in (0, 1)))
high_8 = shuffle(tuple(4 * m + n for m in range(8) for n in (2, 3)))
low_4 = shuffle(tuple(8 * m + n for m in range(4) for n in (0, 4, 1, 5)))
high_4 = shuffle(tuple(8 * m + n for m in range(4) for n in (2, 6, 3, 7)))


def token_rounder(low, high, zero: int):
    @inner
    def round_token(x_I):
        """A token's numbers as pairs of int16, a group's 32 as 16 pairs in the order of the weights; scales; starts."""
        G = x_I.size // GROUP
        x_j, scale_G, start_G = np.empty(G * 16, np.int32), np.empty(G, np.float32), np.empty(G, np.int32)
        half, up = fill_i32(np.int32(0xFFFF)), fill_i32(np.int32(16))
        for g in range(G):
            a, b = load(x_I, g * 32), load(x_I, g * 32 + 16)
            largest = largest_magnitude(a, b)
            scale_G[g] = largest / np.float32(32767)
            factor = fill(inverse(scale_G[g]))
            a, b = nearest(a * factor), nearest(b * factor)
            start_G[g] = np.int32(-zero * sum_of(a + b))
            a, b = to_i32(a), to_i32(b)
            store(x_j, g * 16, (low(a, b) & half) | (high(a, b) << up))
        return x_j, scale_G, start_G

    return round_token


round_token_8, round_token_4 = token_rounder(low_8, high_8, 128), token_rounder(low_4, high_4, 8)


@kernel
def inverse(scale):
    """1 / scale, and 0 for a group of zeros or of numbers below 1e-34, which count as zeros."""
    return np.float32(1) / scale if scale > np.float32(3e-39) else np.float32(0)


@inner
def share_8(first, last, values_PQr, scales_PGr, x_j, scale_G, start_G, bias_O, y_O):
    for p in range(first, last):
        finish_rows(rows_8(values_PQr, scales_PGr, p, x_j, scale_G, start_G), p, bias_O, y_O)


@inner
def rows_8(values_PQr, scales_PGr, p, x_j, scale_G, start_G):
    """16 rows of int8 times a token: each 32-bit lane is split into its even and its odd bytes."""
    even, byte = fill_i32(np.int32(0x00FF00FF)), fill_i32(np.int32(8))
    total = zeros()
    for g in range(scale_G.size):
        whole = fill_i32(start_G[g])
        for q in range(g * 8, g * 8 + 8):
            weights = load(values_PQr, (p, q, 0))
            whole = dot_i16(whole, weights & even, load_one(x_j, 2 * q))
            whole = dot_i16(whole, (weights >> byte) & even, load_one(x_j, 2 * q + 1))
        total = fma(to_f32(whole), load(scales_PGr, (p, g, 0)) * fill(scale_G[g]), total)
    return total


launch_8 = launcher(share_8)


@with_team
@kernel
def multiply_8(state, threads, values_PQr, scales_PGr, x_1I, bias_O, y_1O):
    x_j, scale_G, start_G = round_token_8(x_1I[0])
    launch_8(state, threads, len(values_PQr), values_PQr, scales_PGr, x_j, scale_G, start_G, bias_O, y_1O[0])


@inner
def share_4(first, last, values_PQr, scales_PGr, x_j, scale_G, start_G, bias_O, y_O):
    for p in range(first, last):
        finish_rows(rows_4(values_PQr, scales_PGr, p, x_j, scale_G, start_G), p, bias_O, y_O)


@inner
def rows_4(values_PQr, scales_PGr, p, x_j, scale_G, start_G):
    """16 rows of int4 times a token: each 16-bit half of a lane is split into its four numbers."""
    one_of_four, n4, n8, n12 = (
        fill_i32(np.int32(0x000F000F)), fill_i32(np.int32(4)), fill_i32(np.int32(8)), fill_i32(np.int32(12))
    )  # fmt: skip
    total = zeros()
    for g in range(scale_G.size):
        whole = fill_i32(start_G[g])
        for q in range(g * 4, g * 4 + 4):
            weights = load(values_PQr, (p, q, 0))
            whole = dot_i16(whole, weights & one_of_four, load_one(x_j, 4 * q))
            whole = dot_i16(whole, (weights >> n4) & one_of_four, load_one(x_j, 4 * q + 1))
            whole = dot_i16(whole, (weights >> n8) & one_of_four, load_one(x_j, 4 * q + 2))
            whole = dot_i16(whole, (weights >> n12) & one_of_four, load_one(x_j, 4 * q + 3))
        total = fma(to_f32(whole), load(scales_PGr, (p, g, 0)) * fill(scale_G[g]), total)
    return total


launch_4 = launcher(share_4)


@with_team
@kernel
def multiply_4(state, threads, values_PQr, scales_PGr, x_1I, bias_O, y_1O):
    x_j, scale_G, start_G = round_token_4(x_1I[0])
    launch_4(state, threads, len(values_PQr), values_PQr, scales_PGr, x_j, scale_G, start_G, bias_O, y_1O[0])


@inner
def finish_rows(total, p, bias_O, y_O):
    """Add the bias and write the 16 rows, or those that are not filling."""
    o, count = p * LANES, min(LANES, y_O.size - p * LANES)
    if bias_O.size:
        total = total + load_part(bias_O, o, count)
    store_part(y_O, o, total, count)


# ---- many tokens: 8 bits -------------------------------------------------------------------------------------------

byte_0, byte_1, byte_2, byte_3 = (
    shuffle(tuple(n + 4 * m for m in range(8)) * 2) for n in range(4)
)  # every fourth number of 32


def round_tokens(x_TI, zero):
    """Each token's numbers as int8, four neighbours to a lane, the tokens of a tile side by side; scales; starts."""
    blocks, G = -(-x_TI.shape[0] // TOKENS), x_TI.shape[1] // GROUP
    x_BQt = np.empty((blocks, G * 8, TOKENS), np.int32)
    scale_BGt = np.empty((blocks, G, TOKENS), np.float32)
    start_BGt = np.empty((blocks, G, TOKENS), np.int32)
    round_blocks(blocks, x_TI, zero, x_BQt, scale_BGt, start_BGt)
    return x_BQt, scale_BGt, start_BGt


@shared
@inner
def round_blocks(first, last, x_TI, zero, x_BQt, scale_BGt, start_BGt):
    for b in range(first, last):
        for t in range(TOKENS):
            if b * TOKENS + t < x_TI.shape[0]:
                round_row(x_TI[b * TOKENS + t], x_BQt[b, :, t], scale_BGt[b, :, t], start_BGt[b, :, t], zero)
            else:  # a tile is filled up with tokens of nothing
                x_BQt[b, :, t], scale_BGt[b, :, t], start_BGt[b, :, t] = 0, 0, 0


@inner
def round_row(x_I, x_Q, scale_G, start_G, zero):
    byte, n8, n16, n24 = (
        fill_i32(np.int32(0xFF)), fill_i32(np.int32(8)), fill_i32(np.int32(16)), fill_i32(np.int32(24))
    )  # fmt: skip
    lanes = np.empty(LANES, np.int32)
    for g in range(scale_G.size):
        a, b = load(x_I, g * 32), load(x_I, g * 32 + 16)
        scale_G[g] = largest_magnitude(a, b) / np.float32(127)
        factor = fill(inverse(scale_G[g]))
        a, b = nearest(a * factor), nearest(b * factor)
        start_G[g] = np.int32(-zero * sum_of(a + b))
        a, b = to_i32(a), to_i32(b)
        words = (byte_0(a, b) & byte) | ((byte_1(a, b) & byte) << n8) | ((byte_2(a, b) & byte) << n16)
        store(lanes, 0, words | (byte_3(a, b) << n24))
        for q in range(8):
            x_Q[g * 8 + q] = lanes[q]


@shared
@inner
def multiply_tokens_8(first, last, values_PQr, scales_PGr, x_BQt, scale_BGt, start_BGt, bias_O, y_TO):
    for p in range(first, last):
        for b in range(x_BQt.shape[0]):
            tile_8(values_PQr, scales_PGr, p, x_BQt, scale_BGt, start_BGt, b, bias_O, y_TO)


@inner
def tile_8(values_PQr, scales_PGr, p, x_BQt, scale_BGt, start_BGt, b, bias_O, y_TO):
    total = tile(TOKENS, zeros())
    for g in range(scales_PGr.shape[1]):
        whole = load_column(TOKENS, start_BGt, (b, g))
        for q in range(g * 8, g * 8 + 8):
            whole = outer_u8_i8(whole, load(values_PQr, (p, q, 0)), x_BQt, (b, q))
        total = add_scaled(total, whole, load(scales_PGr, (p, g, 0)), scale_BGt, (b, g))
    finish_tile(total, p, b, bias_O, y_TO)


@shared
@inner
def multiply_tokens_4(first, last, values_PQr, scales_PGr, x_BQt, scale_BGt, start_BGt, bias_O, y_TO):
    for p in range(first, last):
        for b in range(x_BQt.shape[0]):
            tile_4(values_PQr, scales_PGr, p, x_BQt, scale_BGt, start_BGt, b, bias_O, y_TO)


@inner
def tile_4(values_PQr, scales_PGr, p, x_BQt, scale_BGt, start_BGt, b, bias_O, y_TO):
    half_a_byte, n4 = fill_i32(np.int32(0x0F0F0F0F)), fill_i32(np.int32(4))
    total = tile(TOKENS, zeros())
    for g in range(scales_PGr.shape[1]):
        whole = load_column(TOKENS, start_BGt, (b, g))
        for q in range(g * 4, g * 4 + 4):
            weights = load(values_PQr, (p, q, 0))
            whole = outer_u8_i8(whole, weights & half_a_byte, x_BQt, (b, 2 * q))
            whole = outer_u8_i8(whole, (weights >> n4) & half_a_byte, x_BQt, (b, 2 * q + 1))
        total = add_scaled(total, whole, load(scales_PGr, (p, g, 0)), scale_BGt, (b, g))
    finish_tile(total, p, b, bias_O, y_TO)


@inner
def finish_tile(total, p, b, bias_O, y_TO):
    for n in range(min(TOKENS, y_TO.shape[0] - b * TOKENS)):
        finish_rows(total[n], p, bias_O, y_TO[b * TOKENS + n])


# ---- any processor: widened to float32 -------------------------------------------------------------------------------


@shared
@inner
def multiply_widened(first, last, values_PQr, scales_PGr, bits, x_TI, bias_O, y_TO):
    """Nothing is rounded here: every weight becomes the float32 that it means."""
    for p in range(first, last):
        for t in range(y_TO.shape[0]):
            finish_rows(rows_widened(values_PQr, scales_PGr, p, bits, x_TI[t]), p, bias_O, y_TO[t])


@inner
def rows_widened(values_PQr, scales_PGr, p, bits, x_I):
    """16 rows times a token. From the right, a lane holds columns 0 1 2 3; in int4 the halves 0|4 1|5 2|6 3|7."""
    mask, zero = fill_i32(np.int32((1 << bits) - 1)), fill_i32(np.int32(1 << bits - 1))
    many, total = 32 // bits, zeros()
    for g in range(scales_PGr.shape[1]):
        group = zeros()
        for q in range(g * bits, g * bits + bits):
            weights = load(values_PQr, (p, q, 0))
            for n in range(many):
                place = n * bits if bits == 8 else (n % 4) * 8 + (n // 4) * 4
                number = to_f32(((weights >> fill_i32(np.int32(place))) & mask) - zero)
                group = fma(number, load_one(x_I, q * many + n), group)
        total = fma(group, load(scales_PGr, (p, g, 0)), total)
    return total
