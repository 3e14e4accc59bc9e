"""A token chosen without reading the whole head: first a bound for every logit, then the logits of the few that matter.

    bound[p]  >  every logit of tile p, 16 tokens      from a sketch of the head, half of its bytes or less
    floor     =  the k-th largest logit of the tiles whose bounds are highest
    shortlist =  all tiles with a bound that reaches the floor: nobody else can be among the k likeliest

The head is where a small model spends its time: of the 0.5B's 494 M weights, 136 M say how likely each of 151,936
tokens is, and greedy decoding asks for the likeliest, Qwen2's own settings (top_k 20) for twenty. What is chosen is
what all logits would have chosen, to the last bit: the shortlist's logits are the same sums.

Bytes read for a token, 0.5B: bf16 in 12 bits 741 MB, with a sketch 617; int8 525, then 460; int4 346, then 280.

`backends/sketch.py` says why the bound holds, and how surely: it fails for one token in 10^12.
"""

from __future__ import annotations

import numpy as np

from backends.interface import Chain, Cost, operation, shape_only
from backends.quantised import ROWS
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import linear
from tinyqwen.sampling import Sampling, penalised, sample

AT_FIRST = 16  # tiles that set the floor, for each of the k tokens one more
FEW = 64  # top_k above which the shortlist would be long


@operation
def tile_bounds(backend, x_1D, sketch):
    """For each tile of 16 rows, what no product of them with x reaches, from a sketch of the matrix.

    A faster body may round x, if its bound says how much that can be.

    >>> from backends import get; from backends.sketch import sketch_of
    >>> weight_VD = np.random.default_rng(0).standard_normal((40, 32), np.float32)
    >>> x_1D = weight_VD[20:21]
    >>> bound_P = tile_bounds(get("numpy"), x_1D, sketch_of(weight_VD))
    >>> bound_P.shape, bool(bound_P[1] > (weight_VD @ x_1D[0])[20] > bound_P[0])
    ((3,), True)
    """
    bound_V = sketch.bounds(x_1D[0])
    filled_V = np.full(-(-len(bound_V) // ROWS) * ROWS, -np.inf, np.float32)
    filled_V[: len(bound_V)] = bound_V
    return filled_V.reshape(-1, ROWS).max(axis=1)


@tile_bounds.cost
def _(x_1D, sketch):
    (V, D), P = sketch.shape, len(sketch.norm_PR)
    return Cost(shape_only((P,)), flops=2 * V * D, read=x_1D.nbytes + sketch.nbytes, written=4 * P)


@operation
def tile_logits(backend, x_1D, weight_VD, tile_N):
    """The logits of those tiles' rows, tile by tile; the last tile of a matrix may have fewer than 16.

    >>> from backends import get
    >>> tile_logits(get("numpy"), np.float32([[2]]), np.arange(40, dtype=np.float32)[:, None], np.array([2]))
    array([64., 66., 68., 70., 72., 74., 76., 78.], dtype=float32)
    """
    return linear(backend, x_1D, take_rows(backend, weight_VD, ids_of(tile_N, len(weight_VD))))[0]


@tile_logits.cost
def _(x_1D, weight_VD, tile_N):
    rows, (V, D) = len(tile_N) * ROWS, weight_VD.shape
    read = x_1D.nbytes + tile_N.nbytes + rows * weight_VD.nbytes // V
    return Cost(shape_only((rows,)), flops=2 * rows * D, read=read, written=4 * rows)


def ids_of(tile_N: np.ndarray, V: int) -> np.ndarray:
    """The tokens of those tiles.

    >>> ids_of(np.array([1]), 20)
    array([16, 17, 18, 19])
    """
    id_N = (tile_N[:, None] * ROWS + np.arange(ROWS)).ravel()
    return id_N[id_N < V]


@Chain
def shortlist(backend, x_1D, head_VD, sketch, seen_N, *, k, at_first, penalty, vocabulary):
    """The ids that can be among the k likeliest, in ascending order, and their logits; none if bounds are NaN.

    x_1D         of a sequence's last token, behind the last norm
    head_VD      the matrix that makes logits of it, and its sketch
    seen_N       ids whose logits the penalty, which is at least 1, lowers
    at_first     the tiles that set the floor
    vocabulary   ids from here on are never chosen

    >>> from backends import get; from backends.sketch import sketch_of
    >>> head_VD = np.random.default_rng(0).standard_normal((1000, 32), np.float32)
    >>> id_N, logits_N = shortlist(get("numpy"), head_VD[700:701], head_VD, sketch_of(head_VD), np.array([], int),
    ...                            k=1, at_first=2, penalty=1.0, vocabulary=1000)
    >>> len(id_N), int(id_N[logits_N.argmax()])
    (16, 700)
    """
    bound_P = tile_bounds(backend, x_1D, sketch)[: -(-vocabulary // ROWS)]
    first_N = np.sort(np.argpartition(bound_P, -at_first)[-at_first:])
    id_N = ids_of(first_N, vocabulary)
    logits_N = tile_logits(backend, x_1D, head_VD, first_N)[: len(id_N)]
    fair_N = penalised(backend, logits_N, np.flatnonzero(np.isin(id_N, seen_N)), penalty)
    floor = np.partition(fair_N, -k)[-k] if k <= len(fair_N) else -np.inf

    tile_N = np.flatnonzero(bound_P >= floor)
    id_N = ids_of(tile_N, vocabulary)
    return id_N, tile_logits(backend, x_1D, head_VD, tile_N)[: len(id_N)]


def has_shortlist(sampling: Sampling) -> bool:
    """Whether few tokens matter: the likeliest, or the k likeliest, and no penalty that makes others likelier."""
    return (not sampling.do_sample or 0 < sampling.top_k <= FEW) and sampling.repetition_penalty >= 1


def sample_shortlisted(backend, x_1D, head_VD, sketch, seen_N, *, sampling, uniform, vocabulary) -> int | None:
    """The token that `sample` would choose from all logits; None if they are not all finite.

    >>> from backends import get; from backends.sketch import sketch_of
    >>> head_VD = np.random.default_rng(0).standard_normal((1000, 32), np.float32)
    >>> arrays = head_VD[700:701], head_VD, sketch_of(head_VD), np.array([], int)
    >>> sample_shortlisted(get("numpy"), *arrays, sampling=Sampling(), uniform=0.0, vocabulary=1000)
    700
    """
    k = sampling.top_k if sampling.do_sample else 1
    id_N, logits_N = shortlist(
        backend, x_1D, head_VD, sketch, seen_N, k=k, at_first=min(AT_FIRST + k, -(-vocabulary // ROWS)),
        penalty=sampling.repetition_penalty, vocabulary=vocabulary,
    )  # fmt: skip
    if not (len(id_N) and np.isfinite(logits_N).all()):
        return None
    seen_place_N = np.flatnonzero(np.isin(id_N, seen_N)) if len(seen_N) else seen_N
    return int(id_N[sample(backend, logits_N, seen_place_N, sampling=sampling, uniform=uniform)])
