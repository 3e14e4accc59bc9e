"""Dual Chunk Attention: positions by the published tables, and the fast form equals the matrix of all distances."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend
from tests.helpers import assert_close, call, dense_config, host, logits_of, normal, small_weights, tokens
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.dual_chunk import cut, dual_chunk_attention, dual_chunk_tables, sharpen, stretches, ways
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.config import DualChunk
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import Span, make_step

DOUBLE = Backend(np, dtype=np.float64)
SEED = st.integers(0, 2**32 - 1)
CHUNK = st.sampled_from([DualChunk(size, local) for size in range(2, 13) for local in range(1, size)])
TEXT = st.integers(1, 40)
TABLE = DualChunk(chunk_size=12, local_size=4)  # small enough to be checked by hand: L = 8
NOISE = 2e-5  # as in tests/tinyqwen/test_model.py


def distances(total, chunk):
    """How far away each key looks to each query, by ways and stretches: -1 where it is not met."""
    places = ways(np.arange(total), chunk)
    table = np.full((total, total), -1)
    for i in range(total):
        for way, (start, stop) in zip(places, stretches(i, i + 1, chunk)):
            assert (table[i, start:stop] == -1).all(), "a key is met twice"
            table[i, start:stop] = way[i] - places[0][start:stop]
    return table


def distances_by_the_paper(total, chunk):
    """The same, pair by pair, from the formulas."""
    L, c = chunk.chunk_len, chunk.chunk_size
    table = np.full((total, total), -1)
    for i in range(total):
        for j in range(i + 1):
            apart = i // L - j // L
            query = i % L if apart == 0 else min(i % L + L, c) if apart == 1 else min(2 * L - 1, c)
            table[i, j] = query - j % L
    return table


# ---- positions ----------------------------------------------------------------------------------------------------


def test_the_published_example():
    table = distances(24, TABLE)
    assert table[15, :16].tolist() == [12, 11, 10, 9, 8, 7, 6, 5, 7, 6, 5, 4, 3, 2, 1, 0]
    far = [12, 11, 10, 9, 8, 7, 6, 5]
    assert table[20, :21].tolist() == [*far, *far, 4, 3, 2, 1, 0]


@given(TEXT, CHUNK)
def test_distances_are_those_of_the_formulas(total, chunk):
    np.testing.assert_array_equal(distances(total, chunk), distances_by_the_paper(total, chunk))


@given(TEXT, CHUNK)
def test_near_is_exact_and_far_is_never_beyond_the_chunk_size(total, chunk):
    table, (i, j) = distances(total, chunk), np.indices((total, total))
    seen = j <= i
    assert (table[~seen] == -1).all() and (table[seen] >= 0).all() and table.max() <= chunk.chunk_size
    near = seen & ((i - j <= chunk.local_size) | (i // chunk.chunk_len == j // chunk.chunk_len))
    if chunk.chunk_len > chunk.local_size:  # else a chunk is shorter than what should be near
        np.testing.assert_array_equal(table[near], (i - j)[near])
        np.testing.assert_array_equal(table[: chunk.chunk_size + 1][seen[: chunk.chunk_size + 1]],
                                      (i - j)[: chunk.chunk_size + 1][seen[: chunk.chunk_size + 1]])  # fmt: skip


@given(st.integers(0, 50), st.integers(1, 50), CHUNK)
def test_cuts_end_where_chunks_do(first, count, chunk):
    pieces = list(cut(first, first + count, chunk))
    assert [place for a, b in pieces for place in range(a, b)] == list(range(first, first + count))
    assert all(a // chunk.chunk_len == (b - 1) // chunk.chunk_len for a, b in pieces)
    assert all(b % chunk.chunk_len == 0 for _, b in pieces[:-1])


# ---- the fast form equals the slow one ----------------------------------------------------------------------------


def slow(q_THK, k_GSK, v_GSK, chunk, theta):
    """Every query turned by its distance to every key, and one softmax, in float64. q and k are not turned yet."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    table, out_THK = distances_by_the_paper(S, chunk)[S - T :], np.zeros((T, H, K))
    for t in range(T):
        seen = S - T + t + 1
        cos_SKh, sin_SKh = rope_tables(DOUBLE, table[t, :seen], head_dim=K, theta=theta)
        for h in range(H):
            g = h // (H // G)
            q_SK = rope(DOUBLE, np.broadcast_to(q_THK[t, h], (seen, 1, K)), cos_SKh, sin_SKh)[:, 0]
            score_S = (q_SK * k_GSK[g, :seen]).sum(axis=1) / K**0.5
            weight_S = np.exp(score_S - score_S.max())
            out_THK[t, h] = weight_S / weight_S.sum() @ v_GSK[g, :seen]
    return out_THK


def fast(backend, q_THK, k_GSK, v_GSK, chunk, theta):
    """As the model does it: keys turned once, by their place in the chunk."""
    T, S = len(q_THK), k_GSK.shape[1]
    settings = {"head_dim": q_THK.shape[2], "theta": theta, "chunk": chunk}
    length_S = np.full(S, S)
    tables = dual_chunk_tables(backend, np.arange(S), length_S, **settings)
    queries = [call(backend, rope, q_THK, cos_SKh[S - T :], sin_SKh[S - T :]) for cos_SKh, sin_SKh in tables]
    k_SGK = call(backend, rope, np.ascontiguousarray(k_GSK.swapaxes(0, 1)), *tables[0])
    keys, values = [k_SGK.swapaxes(0, 1)], [v_GSK]
    return call(backend, dual_chunk_attention, queries, keys, values, spans=(Span(0, T, None),), chunk=chunk)


@given(SEED, TEXT, st.integers(1, 40), CHUNK, st.sampled_from([(1, 1), (2, 3), (1, 7)]), st.sampled_from([2, 8, 10]))
def test_fast_equals_the_matrix_of_all_distances(backend, seed, total, new, chunk, heads, K):
    (G, R), T = heads, min(new, total)
    part = normal(seed, T, G * R, K), normal(seed + 1, G, total, K), normal(seed + 2, G, total, K)
    exact_THK = slow(*(array.astype(np.float64) for array in part), chunk, 1e4)
    double_THK = fast(DOUBLE, *(array.astype(np.float64) for array in part), chunk, 1e4)
    assert np.abs(double_THK - exact_THK).max() <= 1e-12 * np.abs(exact_THK).max()
    assert_close(fast(backend, *part, chunk, 1e4), exact_THK, 1e-4)


@given(SEED, st.integers(1, 8), st.integers(0, 7))
def test_a_text_of_one_chunk_is_plain_attention_bit_for_bit(backend, seed, T, past):
    """Tokens 0 .. L - 1 have their own places, and one part is not merged with anything."""
    total = min(past + T, TABLE.chunk_len)
    T = min(T, total)
    q_THK, k_GSK, v_GSK = normal(seed, T, 14, 8), normal(seed + 1, 2, total, 8), normal(seed + 2, 2, total, 8)
    spans = (Span(0, T, None),)
    plain_THK = call(backend, attention, q_THK, [k_GSK], [v_GSK], spans=spans)
    chunked_THK = call(backend, dual_chunk_attention, [q_THK], [k_GSK], [v_GSK], spans=spans, chunk=TABLE)
    assert_close(chunked_THK, plain_THK, 1e-6)
    own, *others = dual_chunk_tables(
        backend, np.arange(total), np.full(total, total), head_dim=8, theta=1e4, chunk=TABLE
    )
    assert not others
    for table_TKh, plain_TKh in zip(own, rope_tables(backend, np.arange(total), head_dim=8, theta=1e4)):
        np.testing.assert_array_equal(host(table_TKh), host(plain_TKh))


# ---- the whole model ----------------------------------------------------------------------------------------------


def chunk_config(chunk=TABLE, **changes):
    """14 query heads to 2, as the 0.5B has."""
    fields = dict(num_attention_heads=14, num_key_value_heads=2, hidden_size=28, head_dim=8)
    return dense_config(**{**fields, "dual_chunk_attention_config": chunk, **changes})


@pytest.mark.many
@given(st.lists(st.integers(1, 36), max_size=6), st.integers(0, 9), CHUNK)
def test_any_cut_of_the_prompt_gives_the_same_logits(backend, cuts, seed, chunk):
    config = chunk_config(chunk, num_hidden_layers=2)
    weights, ids = small_weights(config, backend), tokens(config, 37, seed)
    whole_NV = logits_of(backend, config, weights, ids)
    cache, edges = KVCache(backend, config), sorted({0, *cuts, 37})
    parts = [logits_of(backend, config, weights, ids[i:j], cache) for i, j in pairwise(edges)]
    assert_close(np.concatenate(parts), whole_NV, NOISE)


def test_decoding_token_by_token_equals_prefill(backend):
    config = chunk_config()
    weights, ids = small_weights(config, backend), tokens(config, 30)
    cache = KVCache(backend, config)
    decoded_NV = np.concatenate([logits_of(backend, config, weights, [token], cache) for token in ids])
    assert_close(decoded_NV, logits_of(backend, config, weights, ids), NOISE)


def test_sequences_of_all_lengths_in_one_step_equal_each_alone(backend):
    config = chunk_config()
    weights, pasts, news = small_weights(config, backend), [0, 5, 7, 20, 23], [3, 1, 2, 1, 9]

    def part(seed):
        cache, ids = KVCache(backend, config), tokens(config, pasts[seed] + news[seed], seed)
        if pasts[seed]:
            logits_of(backend, config, weights, ids[: pasts[seed]], cache)
        return ids[pasts[seed] :], cache

    together = host(forward(backend, config, weights, make_step([part(n) for n in range(5)], all_logits=True)))
    alone = [host(forward(backend, config, weights, make_step([part(n)], all_logits=True))) for n in range(5)]
    assert_close(together, np.concatenate(alone), NOISE)


def test_up_to_a_chunk_the_model_is_the_plain_one_and_beyond_it_is_not(backend):
    chunked, plain = chunk_config(), chunk_config(None)
    weights, ids = small_weights(plain, backend), tokens(plain, 30)
    chunked_NV, plain_NV = (logits_of(backend, config, weights, ids) for config in (chunked, plain))
    assert_close(chunked_NV[:13], plain_NV[:13], NOISE)  # all distances up to chunk_size are true ones, as L > w
    assert np.abs(chunked_NV[13:] - plain_NV[13:]).max() > 0.01


# ---- temperature --------------------------------------------------------------------------------------------------


def test_the_temperature_is_yarns_by_the_length_of_the_text(backend):
    one_TKh = np.ones((4, 1), np.float32)
    n_T = np.array([100, 32768, 65536, 131072])
    hot_TKh, _ = call(backend, sharpen, one_TKh, one_TKh, n_T, trained=32768)
    np.testing.assert_allclose(hot_TKh[:, 0], [1, 1, 1.0693147181, 1.1386294361], rtol=1e-7)


def test_a_prompt_in_chunks_has_the_temperature_of_the_whole(backend):
    """The full length counts from the first chunk on; texts up to the trained length have none."""
    plain = chunk_config()
    hot = chunk_config(TABLE._replace(original_max_position_embeddings=16))
    weights, ids = small_weights(plain, backend), tokens(plain, 30)
    for count, differs in ((16, False), (30, True)):
        whole_NV = logits_of(backend, hot, weights, ids[:count])
        cache, parts = KVCache(backend, hot), []
        for start, stop in ((0, 5), (5, 12), (12, count)):
            step = make_step([(ids[start:stop], cache)], all_logits=True, lengths=[count])
            parts.append(host(forward(backend, hot, weights, step)))
        assert_close(np.concatenate(parts), whole_NV, NOISE)
        off = np.abs(whole_NV - logits_of(backend, plain, weights, ids[:count])).max()
        assert (off > 0.01) == differs


def test_keys_keep_the_temperature_that_they_were_stored_with(backend):
    hot = chunk_config(TABLE._replace(original_max_position_embeddings=4))
    weights, ids = small_weights(hot, backend), tokens(hot, 9)
    cache = KVCache(backend, hot)
    logits_of(backend, hot, weights, ids[:6], cache)
    before = host(cache.layers[0][:, :, :6].copy())
    logits_of(backend, hot, weights, ids[6:], cache)
    np.testing.assert_array_equal(host(cache.layers[0][:, :, :6]), before)


@pytest.mark.parametrize("all_at_once", [True, False])
def test_a_step_asks_for_logits_where_the_text_ends(all_at_once):
    step = make_step([([1, 2, 3], None)], lengths=[3 if all_at_once else 5])
    assert step.row_N.tolist() == ([2] if all_at_once else [])
    assert step.length_T.tolist() == [3 if all_at_once else 5] * 3
