"""Some rows of a matrix times a token, 16 rows at a time: the very sums of `linear`, to the last bit.

Bytes that must move: those of the rows, which are few (`tile_bounds.py` has ruled out the others).
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.linear import filled_up
from backends.cpu.matrix_product import NO_BIAS, as_kernels_take, multiply, prepared, rows_of_unit, units
from backends.cpu.rows import plain
from backends.cpu.team import launcher, with_team
from backends.quantised import ROWS, Quantised


def tile_logits_for(features: frozenset[str]):
    """The body of `tile_logits` for a processor with these features; the definition is in tinyqwen/shortlist.py."""

    def tile_logits(backend, x_1D, weight_VD, tile_N):
        weight = as_kernels_take(weight_VD, features)
        if weight is None:
            return NotImplemented
        x_1D = filled_up(plain(x_1D)) if isinstance(weight_VD, Quantised) else plain(x_1D)
        y_V = backend.empty((len(weight_VD),))  # memory that nobody touches costs nothing
        id_N = (tile_N[:, None] * ROWS + np.arange(ROWS)).ravel()
        id_N = id_N[id_N < len(weight_VD)]
        some_tiles(weight, x_1D, tile_N, NO_BIAS, y_V)
        return y_V[id_N]

    return tile_logits


@inner
def multiply_tiles(first, last, weight, token, tile_N, no_bias, y_V):
    """A tile is one unit of a matrix in tiles, and 16 of one in rows."""
    all_units, each = units(weight, y_V), ROWS // rows_of_unit(weight, y_V)
    for n in range(first, last):
        start = tile_N[n] * each
        multiply(start, min(start + each, all_units), weight, token, no_bias, y_V)


launch_tiles = launcher(multiply_tiles)


@with_team
@kernel
@allocating
def some_tiles(state, threads, weight, x_1D, tile_N, no_bias, y_V):
    token = prepared(state, threads, weight, x_1D[0])
    launch_tiles(state, threads, tile_N.size, weight, token, tile_N, no_bias, y_V)
