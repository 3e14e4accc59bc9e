"""Attention in parts: each part by the formula, and merged they are one softmax, on every backend."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend
from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.attention import attend, visible, visible_pairs
from tinyqwen.blocks.attention_parts import attention_part, merge_parts, merged

DOUBLE = Backend(np, dtype=np.float64)
SEED = st.integers(0, 2**32 - 1)
NEW, KEYS, WINDOW = st.integers(1, 6), st.integers(0, 12), st.none() | st.integers(1, 16)
PAST = st.integers(-8, 20)  # from a stretch that begins after the last query to one that lies far behind
GROUPS, SHARE, WIDTH = st.integers(1, 3), st.integers(1, 3), st.integers(1, 8)  # G, R, K
NOISE = 5e-6  # as in test_attention, and once more for shares and logs


def draw(seed, T, S, G, R, K):
    return normal(seed, T, G * R, K), normal(seed + 1, G, S, K), normal(seed + 2, G, S, K)


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def reference(q_THK, k_GSK, v_GSK, past, window):
    """The formula, a number at a time, in Python's own float64."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    out_THK, lse_TH = np.zeros((T, H, K)), np.full((T, H), -np.inf)
    for t in range(T):
        seen = [s for s in range(S) if s <= past + t and (window is None or s > past + t - window)]
        for h in range(H):
            g = h // (H // G)
            scores = [sum(float(q_THK[t, h, i]) * float(k_GSK[g, s, i]) for i in range(K)) / K**0.5 for s in seen]
            if seen:
                total = sum(map(math.exp, scores))
                lse_TH[t, h] = math.log(total)
                for s, score in zip(seen, scores):
                    out_THK[t, h] += math.exp(score) / total * v_GSK[g, s]
    return out_THK, lse_TH


@given(SEED, NEW, KEYS, PAST, GROUPS, SHARE, WIDTH, WINDOW)
def test_a_part_equals_the_formula_in_float64(backend, seed, T, S, past, G, R, K, window):
    q_THK, k_GSK, v_GSK = draw(seed, T, S, G, R, K)
    out_THK, lse_TH = call(backend, attention_part, q_THK, k_GSK, v_GSK, past=past, window=window)
    expected_THK, expected_TH = reference(q_THK, k_GSK, v_GSK, past, window)
    assert out_THK.dtype == lse_TH.dtype == np.float32
    allowed = NOISE * (1 + np.abs(q_THK).max() * np.abs(k_GSK).max(initial=0))
    assert np.abs(out_THK - expected_THK).max() <= allowed
    seen_TH = expected_TH > -np.inf
    assert (lse_TH[~seen_TH] == -np.inf).all() and (out_THK[~seen_TH] == 0).all()
    assert np.abs(lse_TH[seen_TH] - expected_TH[seen_TH]).max(initial=0) <= allowed


@given(NEW, KEYS, PAST, WINDOW)
def test_pairs_are_those_that_the_mask_leaves(T, S, past, window):
    assert visible_pairs(T, S, window, past) == visible(np, T, S, window, past).sum()


def in_parts(backend, q_THK, k_GSK, v_GSK, edges, window=None):
    """Attention whose keys are cut at these places, merged."""
    (T, _, _), S = q_THK.shape, k_GSK.shape[1]
    cuts = sorted({0, *(edge for edge in edges if edge < S), S})
    parts = [
        call(backend, attention_part, q_THK, k_GSK[:, a:b], v_GSK[:, a:b], past=S - T - a, window=window)
        for a, b in pairwise(cuts)
    ]
    return call(backend, merge_parts, *map(list, zip(*parts)))


@given(SEED, NEW, st.integers(0, 30), st.lists(st.integers(1, 35), max_size=5), GROUPS, SHARE, WINDOW)
def test_merged_parts_are_one_softmax(backend, seed, T, past, edges, G, R, window):
    """However the keys are cut; also between and after the queries' own. In float64 to the last digits."""
    part = draw(seed, T, past + T, G, R, 4)
    exact_THK = attend(DOUBLE, *wide(*part), window=window)
    double_THK = in_parts(DOUBLE, *wide(*part), edges, window)
    assert np.abs(double_THK - exact_THK).max() <= 1e-12 * np.abs(exact_THK).max()
    allowed = NOISE * (1 + np.abs(part[0]).max() * np.abs(part[1]).max())
    assert np.abs(in_parts(backend, *part, edges, window) - exact_THK).max() <= allowed


@given(SEED, NEW, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_parts_does_not_matter(backend, seed, T, count, random):
    outs, lses = list(normal(seed, count, T, 3, 4)), list(4 * normal(seed + 1, count, T, 3))
    order = random.sample(range(count), count)
    again_THK = call(backend, merge_parts, [outs[n] for n in order], [lses[n] for n in order])
    assert_close(again_THK, call(backend, merge_parts, outs, lses), 1e-6)


def test_a_part_that_saw_nothing_changes_no_bit(backend):
    out_THK, lse_TH = normal(0, 3, 4, 8), 10 * normal(1, 3, 4)
    nothing = np.zeros_like(out_THK), np.full_like(lse_TH, -np.inf)
    for outs, lses in (((out_THK, nothing[0]), (lse_TH, nothing[1])), ((nothing[0], out_THK), (nothing[1], lse_TH))):
        np.testing.assert_array_equal(call(backend, merge_parts, outs, lses), out_THK)
    np.testing.assert_array_equal(call(backend, merge_parts, [nothing[0]] * 3, [nothing[1]] * 3), nothing[0])
    np.testing.assert_array_equal(merged(backend, [(out_THK, lse_TH)]), out_THK)


@pytest.mark.parametrize("size", [100.0, 1e4, 1e15])
def test_huge_scores_do_not_overflow(backend, size):
    """Two stretches, of which the second holds the best key; a warning is an error in these tests."""
    q_THK, v_GSK = np.float32([[[size, 0]]]), np.float32([[[1, 1], [2, 3], [4, 4]]])
    k_GSK = np.float32([[[-size, 0], [0, size], [size, 0]]])
    np.testing.assert_array_equal(in_parts(backend, q_THK, k_GSK, v_GSK, [1]), [[[4, 4]]])


def test_nan_is_not_lost_and_stays_with_its_heads(backend):
    """A NaN in a key of KV head 0 spoils that head's queries, whatever the other part says."""
    q_THK, k_GSK, v_GSK = draw(0, 2, 9, 2, 2, 4)
    clean_THK = in_parts(backend, q_THK, k_GSK, v_GSK, [4])
    k_GSK[0, 2, 1] = np.nan
    with np.errstate(invalid="ignore"):
        out_THK = in_parts(backend, q_THK, k_GSK, v_GSK, [4])
    assert np.isnan(out_THK[:, :2]).all()
    np.testing.assert_array_equal(out_THK[:, 2:], clean_THK[:, 2:])
