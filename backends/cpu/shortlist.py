"""The shortlist in one call: bounds, the tiles that set the floor, and the logits of all that reach it.

What is computed are the kernels of `tile_bounds.py` and `tile_logits.py`; what lies between them is little, but done in
NumPy it costs 0.3 ms a token, for its code and tables have left the caches while the weights were read.

    choosing a token of the 0.5B in int8, us          head    bounds alone    all
    v1  three operations and NumPy between           3,076           1,670  2,020    (memory: 45 GB/s)
    v2  one call                                     2,325           1,282  1,455    (75 GB/s)
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, kernel
from backends.cpu.linear import filled_up
from backends.cpu.matrix_product import NO_BIAS, as_kernels_take, prepared
from backends.cpu.rows import plain
from backends.cpu.team import with_team
from backends.cpu.tile_bounds import launch_bounds, token_of
from backends.cpu.tile_logits import launch_tiles
from backends.quantised import ROWS, Quantised


def shortlist_for(features: frozenset[str]):
    """The body of `shortlist` for a processor with these features; the definition is in tinyqwen/shortlist.py."""

    def shortlist(backend, x_1D, head_VD, sketch, seen_N, *, k, at_first, penalty, vocabulary):
        head = as_kernels_take(head_VD, features)
        if head is None or "vnni" not in features:
            return NotImplemented
        V, x_1D = len(head_VD), plain(x_1D)
        x_1I = filled_up(x_1D)  # the sketch is in groups, whatever the head is
        # Memory that nobody touches costs nothing.
        id_V, logits_V, y_V = backend.empty((V,), np.int64), backend.empty((V,)), backend.empty((V,))
        found = contenders(
            (*sketch.rough.lanes, sketch.norm_PR), token_of(x_1I[0], sketch.dither_I), head,
            x_1I if isinstance(head_VD, Quantised) else x_1D, NO_BIAS, seen_N, k, at_first, float(penalty),
            vocabulary, y_V, id_V, logits_V,
        )  # fmt: skip
        return id_V[:found], logits_V[:found]

    return shortlist


@kernel
def keep_if_larger(value, place, value_K, place_K):
    """Values in ascending order, and their places: the smallest goes if this one is larger."""
    if value > value_K[0]:
        n = 0
        while n + 1 < value_K.size and value_K[n + 1] < value:
            value_K[n], place_K[n] = value_K[n + 1], place_K[n + 1]
            n += 1
        value_K[n], place_K[n] = value, place


@with_team
@kernel
@allocating
def contenders(
    state, threads, sketch, token, head, x_1D, no_bias, seen_N, k, at_first, penalty, vocabulary, y_V, id_V, logits_V
):
    """How many there are, written to id_V and logits_V."""
    values_PQr, scales_PGr, norm_Pr = sketch
    tiles, head_token = values_PQr.shape[0], prepared(state, threads, head, x_1D[0])
    bound_P, tile_P = np.empty(tiles, np.float32), np.empty(tiles, np.int64)
    launch_bounds(state, threads, tiles, values_PQr, scales_PGr, norm_Pr, token, bound_P)
    asked = (vocabulary + ROWS - 1) // ROWS

    bound_M, first_M = np.full(at_first, -np.inf, np.float32), np.zeros(at_first, np.int64)
    for p in range(asked):
        keep_if_larger(bound_P[p], p, bound_M, first_M)
    launch_tiles(state, threads, at_first, head, head_token, first_M, no_bias, y_V)

    seen_V = np.zeros(vocabulary if seen_N.size else 0, np.bool_)
    for n in range(seen_N.size):
        if seen_N[n] < vocabulary:
            seen_V[seen_N[n]] = True
    logit_K, token_K = np.full(k, -np.inf, np.float32), np.zeros(k, np.int64)
    for n in range(at_first):
        for v in range(first_M[n] * ROWS, min(first_M[n] * ROWS + ROWS, vocabulary)):
            logit = y_V[v]
            if seen_V.size and seen_V[v]:
                logit = np.float32(logit * penalty if logit < 0 else logit / penalty)
            keep_if_larger(logit, v, logit_K, token_K)

    floor, chosen, found = logit_K[0], 0, 0
    for p in range(asked):
        if bound_P[p] >= floor:
            tile_P[chosen] = p
            chosen += 1
    launch_tiles(state, threads, chosen, head, head_token, tile_P, no_bias, y_V)
    for n in range(chosen):
        for v in range(tile_P[n] * ROWS, min(tile_P[n] * ROWS + ROWS, vocabulary)):
            id_V[found], logits_V[found] = v, y_V[v]
            found += 1
    return found
