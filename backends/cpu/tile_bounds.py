"""Bounds of all logits, from a sketch of the head (`backends/sketch.py`): for each 16 rows what none of them reaches.

    bound[p] = max over rows o of tile p of  (middle + Z * spread + slack * norm[o])

Bytes that must move: the sketch's, 77 MB in the 0.5B, where the head in int8 has 145. The middle is what
`quantised_vector.py` does for int4, and the spread costs two instructions a group more: the memory sets the speed.

The token is rounded to 8 bits. What that loses is known, |x - rounded|, and goes into the slack; dither and the sums of
squares are those of the rounded token.

    the 0.5B, two cores, a read: 46 GB/s         ms     GB/s
    the head in int8                           3.16     45.7
    its bounds                                 1.76     43.7
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.linear import filled_up
from backends.cpu.quantised_vector import group_4, round_to_8
from backends.cpu.rows import F32, plain
from backends.cpu.simd import fill, fill_i32, fma, largest_of, load, root, to_f32, zeros
from backends.cpu.team import launcher, with_team
from backends.quantised import GROUP
from backends.sketch import SLACK, Z

Z_SQUARED = np.float32(Z * Z / 12)
ROUNDINGS = np.float32(SLACK)


def tile_bounds_for(features: frozenset[str]):
    """The body of `tile_bounds` for a processor with these features; the definition is in tinyqwen/shortlist.py."""

    def tile_bounds(backend, x_1D, sketch):
        if "vnni" not in features:
            return NotImplemented
        values_PQr, scales_PGr = sketch.rough.lanes
        bound_P = np.empty(len(values_PQr), F32)
        token = token_of(filled_up(plain(x_1D))[0], sketch.dither_I)
        bounds(values_PQr, scales_PGr, sketch.norm_PR, token, bound_P)
        return bound_P

    return tile_bounds


@kernel
@allocating
def token_of(x_I, dither_I):
    """The token as whole numbers, scales and starts; for each group what its dither adds, and Z^2 / 12 of its squares;
    and how much of a row's norm the bound needs for what was rounded away."""
    x_Q, scale_G, start_G = round_to_8(x_I)
    moved_G, square_G = np.empty_like(scale_G), np.empty_like(scale_G)
    lost, all_squares = np.float32(0), np.float32(0)
    for g in range(scale_G.size):
        moved, squares = np.float32(0), np.float32(0)
        for i in range(GROUP):
            column = g * GROUP + i
            whole = ((x_Q[column // 4] >> 8 * (i % 4)) & 255 ^ 128) - 128  # four int8 in a lane
            rounded = np.float32(whole) * scale_G[g]
            moved += dither_I[column] * rounded
            squares += rounded * rounded
            lost += (x_I[column] - rounded) * (x_I[column] - rounded)
            all_squares += x_I[column] * x_I[column]
        moved_G[g], square_G[g] = -moved, squares * Z_SQUARED
    return x_Q, scale_G, start_G, moved_G, square_G, np.sqrt(lost) + ROUNDINGS * np.sqrt(all_squares)


@inner
def bounds_of_tiles(first, last, values_PQr, scales_PGr, norm_Pr, token, bound_P):
    x_Q, scale_G, start_G, moved_G, square_G, slack = token
    half_a_byte, n4 = fill_i32(np.int32(0x0F0F0F0F)), fill_i32(np.int32(4))
    for p in range(first, last):
        middle, spread = zeros(), zeros()
        for g in range(scale_G.size):
            whole = group_4(values_PQr, p, g, x_Q, start_G[g], half_a_byte, n4)
            step = load(scales_PGr, (p, g, 0))
            middle = fma(fma(to_f32(whole), fill(scale_G[g]), fill(moved_G[g])), step, middle)
            spread = fma(step * step, fill(square_G[g]), spread)
        bound_P[p] = largest_of(fma(load(norm_Pr, (p, 0)), fill(slack), middle + root(spread)))


launch_bounds = launcher(bounds_of_tiles)


@with_team
@kernel
def bounds(state, threads, values_PQr, scales_PGr, norm_Pr, token, bound_P):
    launch_bounds(state, threads, bound_P.size, values_PQr, scales_PGr, norm_Pr, token, bound_P)
