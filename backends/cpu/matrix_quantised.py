"""Many tokens times a matrix in int8 or int4, and any number of them where the processor has no short dot products.

    y[t, o] = sum over groups g of  w_scale[o, g] * x_scale[t, g] * sum over i in g of (w[o, i] - zero) * x[t, i]

As in `quantised_vector.py`, but the tokens are rounded to 8 bits: arithmetic sets the speed here, and AVX512-VNNI
multiplies four pairs of bytes a lane and step where bf16 multiplies two. (llama.cpp rounds to 8 bits, too.)

                                                                      one core, int8 / int4, 4864 x 896
    v2  widened            to float32, then multiplied: what runs     128 tokens         32 / 28   GFLOP/s
                           where there is no VNNI
    v4  tiles              8 tokens, each weight loaded once for 8    128 tokens        273 / 265
                           on two cores                               512 tokens        620 / 620

                                                                      two newer cores, int8, GFLOP/s
                                                                      256 tokens, y in a cache, or not      16 tokens
                                                                      4864 x 896   896 x 4864   896 x 896   4864 x 896
    v4  tiles              each number of a token is loaded for 16    1,173        1,257        983
    v5  in pairs           rows, in v5 for 32                         1,150, 890   1,384, 1,338 1,166, 897  580
    v6  sent for           y's lines as a tile begins, and the next   1,257, 1,248 1,322, 1,323 1,346, 1,338 1,100
                           pair of tiles while this one is computed

In v5 a tile waited for each line of y that was not in its core's cache, one after another: the narrower the matrix, the
more of them for its arithmetic. Rounding 256 tokens of 896 took 105 us as words of four bytes that were moved one by
one, and takes 23 written as bytes, row by row.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, within
from backends.cpu.quantised_vector import finish_rows, round_row
from backends.cpu.simd import (
    LANES,
    fill_i32,
    fma,
    load,
    load_one,
    load_part,
    prefetch,
    store_part,
    to_f32,
    zeros,
)
from backends.cpu.team import launcher, shared
from backends.cpu.tiles import add_scaled, load_column, outer_u8_i8, send_for_sums, store_tile, tile
from backends.quantised import GROUP, Quantised

TOKENS = 8  # of a tile; 12 and 14 are no faster


# ---- several tokens: 8 bits ----------------------------------------------------------------------------------------


@inner
@allocating
def rounded_tokens(state, threads, x_TI, zero):
    """Each token's numbers as int8, four neighbours to a lane; scales; starts. Tokens of nothing fill up the tiles."""
    T, G = x_TI.shape[0], x_TI.shape[1] // GROUP
    N = (T + TOKENS - 1) // TOKENS * TOKENS
    x_NI, scale_NG, start_NG = (
        np.empty((N, G * GROUP), np.int8),
        np.empty((N, G), np.float32),
        np.empty((N, G), np.int32),
    )
    launch_rounding(state, threads, N, x_TI, zero, x_NI, scale_NG, start_NG)
    return x_NI.view(np.int32), scale_NG, start_NG


@inner
def round_rows(first, last, x_TI, zero, x_NI, scale_NG, start_NG):
    for t in range(first, last):
        if t < len(x_TI):
            round_row(x_TI[t], x_NI[t], scale_NG[t], start_NG[t], zero)
        else:
            x_NI[t], scale_NG[t], start_NG[t] = 0, 0, 0


launch_rounding = launcher(round_rows)


@inner
def pairs_8(first, last, weight, tokens, bias_O, y_TO):
    values_PQr, scales_PGr = weight
    x_NQ, scale_NG, start_NG = tokens
    for pair in range(first, last):
        for t in range(0, len(x_NQ), TOKENS):
            two_tiles_8(values_PQr, scales_PGr, pair, x_NQ, scale_NG, start_NG, t, bias_O, y_TO)


@inner
def two_tiles_8(values_PQr, scales_PGr, pair, x_NQ, scale_NG, start_NG, t, bias_O, y_TO):
    first, second = both(pair, values_PQr)
    send_for_sums(y_TO, t, TOKENS, first * LANES, 2 * LANES)
    total_1, total_2 = tile(TOKENS, bias_of(first, bias_O)), tile(TOKENS, bias_of(second, bias_O))
    for g in range(scales_PGr.shape[1]):
        whole_1 = whole_2 = load_column(TOKENS, start_NG, (t, g))
        for q in range(g * 8, g * 8 + 8):
            send_for_next(values_PQr, first, q)
            whole_1 = outer_u8_i8(whole_1, load(values_PQr, (first, q, 0)), x_NQ, (t, q))
            whole_2 = outer_u8_i8(whole_2, load(values_PQr, (second, q, 0)), x_NQ, (t, q))
        send_for_next(scales_PGr, first, g)
        total_1 = add_scaled(total_1, whole_1, load(scales_PGr, (first, g, 0)), scale_NG, (t, g))
        total_2 = add_scaled(total_2, whole_2, load(scales_PGr, (second, g, 0)), scale_NG, (t, g))
    write_tile(total_1, first, t, y_TO)
    write_tile(total_2, second, t, y_TO)


@inner
def pairs_4(first, last, weight, tokens, bias_O, y_TO):
    values_PQr, scales_PGr = weight
    x_NQ, scale_NG, start_NG = tokens
    for pair in range(first, last):
        for t in range(0, len(x_NQ), TOKENS):
            two_tiles_4(values_PQr, scales_PGr, pair, x_NQ, scale_NG, start_NG, t, bias_O, y_TO)


@inner
def two_tiles_4(values_PQr, scales_PGr, pair, x_NQ, scale_NG, start_NG, t, bias_O, y_TO):
    half_a_byte, n4 = fill_i32(np.int32(0x0F0F0F0F)), fill_i32(np.int32(4))
    first, second = both(pair, values_PQr)
    send_for_sums(y_TO, t, TOKENS, first * LANES, 2 * LANES)
    total_1, total_2 = tile(TOKENS, bias_of(first, bias_O)), tile(TOKENS, bias_of(second, bias_O))
    for g in range(scales_PGr.shape[1]):
        whole_1 = whole_2 = load_column(TOKENS, start_NG, (t, g))
        for q in range(g * 4, g * 4 + 4):
            send_for_next(values_PQr, first, q)
            weights_1, weights_2 = load(values_PQr, (first, q, 0)), load(values_PQr, (second, q, 0))
            whole_1 = outer_u8_i8(whole_1, weights_1 & half_a_byte, x_NQ, (t, 2 * q))
            whole_2 = outer_u8_i8(whole_2, weights_2 & half_a_byte, x_NQ, (t, 2 * q))
            whole_1 = outer_u8_i8(whole_1, (weights_1 >> n4) & half_a_byte, x_NQ, (t, 2 * q + 1))
            whole_2 = outer_u8_i8(whole_2, (weights_2 >> n4) & half_a_byte, x_NQ, (t, 2 * q + 1))
        send_for_next(scales_PGr, first, g)
        total_1 = add_scaled(total_1, whole_1, load(scales_PGr, (first, g, 0)), scale_NG, (t, g))
        total_2 = add_scaled(total_2, whole_2, load(scales_PGr, (second, g, 0)), scale_NG, (t, g))
    write_tile(total_1, first, t, y_TO)
    write_tile(total_2, second, t, y_TO)


@within
def both(pair, values_PQr):
    """The pair's tiles of rows. The last tile of an odd number is its own partner, and is computed twice."""
    return 2 * pair, min(2 * pair + 1, values_PQr.shape[0] - 1)


@within
def send_for_next(array_PNr, p, n):
    """Ask for what the next pair will read. Few tokens are done sooner than memory would come by itself."""
    prefetch(array_PNr, (p + 2, n, 0))
    prefetch(array_PNr, (p + 3, n, 0))


@inner
def bias_of(p, bias_O):
    """Of the 16 rows of a tile."""
    return load_part(bias_O, p * LANES, bias_O.size - p * LANES)


@inner
def write_tile(total, p, t, y_TO):
    """The sums that belong to tokens and rows."""
    rows, T = y_TO.shape[1] - p * LANES, len(y_TO) - t
    if rows >= LANES and T >= TOKENS:
        store_tile(y_TO, (t, p * LANES), total)
    else:
        for n in range(min(TOKENS, T)):
            store_part(y_TO, (t + n, p * LANES), total[n], rows)


# ---- any processor: widened to float32 -------------------------------------------------------------------------------


def matrix_widened(weight: Quantised, x_TI, bias_O, y_TO):
    """y_TO = x_TI @ weight.T + bias_O, and nothing is rounded: every weight becomes the float32 that it means."""
    values_PQr, scales_PGr = weight.lanes
    multiply_widened(len(values_PQr), values_PQr, scales_PGr, weight.bits, x_TI, bias_O, y_TO)


@shared
@inner
def multiply_widened(first, last, values_PQr, scales_PGr, bits, x_TI, bias_O, y_TO):
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
