import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.attention import attention, softmax, visible, visible_pairs
from tinyqwen.step import Span

SEED = st.integers(0, 2**32 - 1)
NEW, PAST = st.integers(1, 6), st.integers(0, 9)  # T, and S - T
GROUPS, SHARE, WIDTH = st.integers(1, 3), st.integers(1, 3), st.integers(1, 8)  # G, R, K
WINDOW = st.none() | st.integers(1, 16)
# Dot products of 8 terms, exp and a mean of 15 values, each rounding at 6e-8 of values around 1.
NOISE = 2e-6


def reference(q_THK, k_GSK, v_GSK, window):
    """The formula of the docstring, a number at a time, in Python's own float64."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    out_THK = np.zeros((T, H, K))
    for t in range(T):
        place = S - T + t  # of this query in its sequence
        first = 0 if window is None else max(0, place - window + 1)
        for h in range(H):
            g = h // (H // G)
            scores = {
                s: sum(float(q_THK[t, h, i]) * float(k_GSK[g, s, i]) for i in range(K)) / math.sqrt(K)
                for s in range(first, place + 1)
            }
            top = max(scores.values())
            total = sum(math.exp(score - top) for score in scores.values())
            for s, score in scores.items():
                for i in range(K):
                    out_THK[t, h, i] += math.exp(score - top) / total * float(v_GSK[g, s, i])
    return out_THK


def draw(seed, T, S, G, R, K):
    return normal(seed, T, G * R, K), normal(seed + 1, G, S, K), normal(seed + 2, G, S, K)


def attend_one(backend, q_THK, k_GSK, v_GSK, window=None):
    spans = (Span(0, len(q_THK), None),)
    return call(backend, attention, q_THK, [k_GSK], [v_GSK], spans=spans, window=window)


@given(SEED, NEW, PAST, GROUPS, SHARE, WIDTH, WINDOW)
def test_equals_the_formula_in_float64(backend, seed, T, past, G, R, K, window):
    q_THK, k_GSK, v_GSK = draw(seed, T, past + T, G, R, K)
    out_THK = attend_one(backend, q_THK, k_GSK, v_GSK, window)
    assert out_THK.dtype == np.float32
    expected_THK = reference(q_THK, k_GSK, v_GSK, window)
    # Scores can be 30 with K = 8; exp carries their absolute error, so noise grows with them.
    assert np.abs(out_THK - expected_THK).max() <= NOISE * (1 + np.abs(q_THK).max() * np.abs(k_GSK).max())


@given(SEED, st.integers(2, 6), PAST, st.data(), WINDOW)
def test_later_keys_and_values_change_nothing(backend, seed, T, past, data, window):
    """Causal: query t must not see what follows it, not even as NaN."""
    q_THK, k_GSK, v_GSK = draw(seed, T, past + T, 2, 2, 4)
    before_THK = attend_one(backend, q_THK, k_GSK, v_GSK, window)
    t = data.draw(st.integers(0, T - 2), "the query")
    k_GSK[:, past + t + 1 :] *= -100
    v_GSK[:, past + t + 1 :] += 100
    after_THK = attend_one(backend, q_THK, k_GSK, v_GSK, window)
    np.testing.assert_array_equal(after_THK[: t + 1], before_THK[: t + 1])
    assert (after_THK[t + 1 :] != before_THK[t + 1 :]).any()


@given(SEED, NEW, PAST, WINDOW)
def test_keys_before_the_window_change_nothing(backend, seed, T, past, window):
    q_THK, k_GSK, v_GSK = draw(seed, T, past + T, 1, 2, 4)
    before_THK = attend_one(backend, q_THK, k_GSK, v_GSK, window)
    unseen = past + 1 - window if window else 0  # the first query sees the most of the past
    k_GSK[:, : max(unseen, 0)] += 100
    v_GSK[:, : max(unseen, 0)] += 100
    np.testing.assert_array_equal(attend_one(backend, q_THK, k_GSK, v_GSK, window), before_THK)


@given(SEED, st.integers(1, 5), st.integers(1, 200), st.sampled_from([1.0, 100.0, 1e30]))
def test_weights_are_positive_and_sum_to_one(backend, seed, T, S, scale):
    weights_TS = call(backend, softmax, normal(seed, T, S) * np.float32(scale))
    assert (weights_TS >= 0).all()
    np.testing.assert_allclose(weights_TS.sum(axis=-1, dtype=np.float64), 1, rtol=1e-6)


@given(SEED, NEW, PAST, WINDOW)
def test_equal_values_come_out_as_they_are(backend, seed, T, past, window):
    """A mean of one and the same vector is that vector, whatever the weights: they sum to one under every mask."""
    q_THK, k_GSK, _ = draw(seed, T, past + T, 2, 3, 4)
    v_K = normal(seed + 3, 4)
    out_THK = attend_one(backend, q_THK, k_GSK, np.broadcast_to(v_K, k_GSK.shape).copy(), window)
    assert_close(out_THK, np.broadcast_to(v_K, out_THK.shape), NOISE)


@given(SEED, NEW, PAST, GROUPS, SHARE, WIDTH)
def test_grouped_query_equals_multi_head_with_repeated_kv_heads(backend, seed, T, past, G, R, K):
    """Consecutive query heads share a KV head: h uses h // R, not h % G."""
    q_THK, k_GSK, v_GSK = draw(seed, T, past + T, G, R, K)
    k_HSK, v_HSK = np.repeat(k_GSK, R, axis=0), np.repeat(v_GSK, R, axis=0)
    assert_close(attend_one(backend, q_THK, k_GSK, v_GSK), attend_one(backend, q_THK, k_HSK, v_HSK), NOISE)


@given(SEED, st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_of_the_past_does_not_matter(backend, seed, S, random):
    """A decoding query sees a set of keys: places are in the keys (RoPE), not in the memory. Sums round otherwise."""
    q_THK, k_GSK, v_GSK = draw(seed, 1, S, 2, 2, 6)
    order = random.sample(range(S), S)
    assert_close(
        attend_one(backend, q_THK, k_GSK[:, order], v_GSK[:, order]), attend_one(backend, q_THK, k_GSK, v_GSK), 5e-6
    )


@given(SEED, st.lists(st.tuples(NEW, PAST), min_size=1, max_size=4), WINDOW)
def test_sequences_of_one_step_do_not_see_each_other(backend, seed, lengths, window):
    parts = [draw(seed + n, T, past + T, 2, 2, 4) for n, (T, past) in enumerate(lengths)]
    stops = np.cumsum([T for T, _ in lengths]).tolist()
    spans = tuple(Span(start, stop, None) for start, stop in zip([0, *stops], stops))
    q_THK, keys, values = np.concatenate([q for q, _, _ in parts]), [k for _, k, _ in parts], [v for _, _, v in parts]
    out_THK = call(backend, attention, q_THK, keys, values, spans=spans, window=window)
    for span, part in zip(spans, parts):
        assert_close(out_THK[span.start : span.stop], attend_one(backend, *part, window), NOISE)


def test_nan_in_one_sequence_stays_there(backend):
    sound, broken = draw(0, 3, 5, 2, 2, 4), draw(1, 2, 2, 2, 2, 4)
    for array in broken:
        array[:] = np.nan
    q_THK = np.concatenate([broken[0], sound[0], broken[0]])
    keys, values = [broken[1], sound[1], broken[1]], [broken[2], sound[2], broken[2]]
    spans = (Span(0, 2, None), Span(2, 5, None), Span(5, 7, None))
    with np.errstate(invalid="ignore"):
        out_THK = call(backend, attention, q_THK, keys, values, spans=spans)
    assert_close(out_THK[2:5], attend_one(backend, *sound), NOISE)
    assert np.isnan(out_THK[[0, 1, 5, 6]]).all()


@given(SEED, NEW, PAST, st.integers(0, 5))
def test_a_window_as_long_as_the_text_is_full_attention(backend, seed, T, past, more):
    part = draw(seed, T, past + T, 2, 2, 4)
    assert_close(attend_one(backend, *part, past + T + more), attend_one(backend, *part), NOISE)


@given(NEW, PAST, WINDOW)
def test_query_i_sees_key_j_if_i_minus_window_is_less_than_j_and_j_at_most_i(T, past, window):
    S = past + T
    table_TS = visible(np, T, S, window)
    for t in range(T):
        i = S - T + t
        for j in range(S):
            assert table_TS[t, j] == (j <= i and (window is None or i - window < j)), (i, j)
    assert visible_pairs(T, S, window) == table_TS.sum()


@pytest.mark.parametrize("size", [100.0, 1e4, 1e15])
def test_huge_scores_pick_the_best_key_and_do_not_overflow(backend, size):
    """exp(89) is beyond float32; Qwen2's keys really are large. A warning is an error in these tests."""
    q_THK = np.float32([[[size, 0]]])
    k_GSK, v_GSK = np.float32([[[-size, 0], [size, 0], [0, size]]]), np.float32([[[1, 1], [2, 3], [4, 4]]])
    assert attend_one(backend, q_THK, k_GSK, v_GSK).tolist() == [[[2, 3]]]


def test_one_visible_key_gives_its_value(backend):
    """Window 1: every token sees itself alone."""
    q_THK, k_GSK, v_GSK = draw(0, 4, 7, 2, 3, 4)
    out_THK = attend_one(backend, q_THK, k_GSK, v_GSK, window=1)
    np.testing.assert_array_equal(out_THK, np.repeat(v_GSK[:, 3:], 3, axis=0).transpose(1, 0, 2))


def test_cache_views_need_not_be_contiguous(backend):
    """Keys and values come as slices of larger memory."""
    q_THK, k_GSK, v_GSK = draw(0, 3, 20, 2, 2, 4)
    expected_THK = attend_one(backend, q_THK, k_GSK[:, :9].copy(), v_GSK[:, :9].copy())
    on = backend.xp.asarray
    views = [on(k_GSK)[:, :9]], [on(v_GSK)[:, :9]]
    assert_close(call(backend, attention, q_THK, *views, spans=(Span(0, 3, None),)), expected_THK, NOISE)
