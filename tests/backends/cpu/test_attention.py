"""What the CPU's attention has of its own: tiles, chunks, types of cache, threads.

That it equals the definition in general is held by tests/tinyqwen/blocks/test_attention.py, on every backend.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import Backend
from backends.cpu.threads import most_threads
from tests.helpers import assert_close, normal
from tinyqwen.blocks.attention import attention
from tinyqwen.kv_cache import KV_FORMATS, Scaled
from tinyqwen.step import Span

DOUBLE = Backend(np, dtype=np.float64)
# Sums of up to 1200 products in float32.
NOISE = 3e-6
# Queries and weights rounded to bfloat16, 1/512 each at most: scores up to 4 move by some 1/100, and weights with them.
ROUNDED = 0.02


@pytest.fixture(scope="module", params=["all features", "none"])
def cpu(request):
    """The backend as it is here, and as it is on a processor without bfloat16 products."""
    return backends.get("cpu") if request.param == "all features" else backends.get("cpu", features=())


def stored(x_GSK, format: str):
    """Keys or values in a cache of that format, with room behind them that holds NaN."""
    G, S, K = x_GSK.shape
    room_GNK = np.full((G, S + 9, K), np.nan, np.float32)
    room_GNK[:, :S] = x_GSK
    if format == "int8":
        cache = Scaled(np.zeros(room_GNK.shape, np.int8), np.full(room_GNK.shape[:2], np.nan, np.float32))
        cache[:, :S] = x_GSK
        return cache[:, :S]
    return room_GNK.astype(np.float32 if format == "f32" else ml_dtypes.bfloat16)[:, :S]


def draw(seed, T, S, G, R, K, format="f32"):
    k_GSK, v_GSK = stored(normal(seed + 1, G, S, K), format), stored(normal(seed + 2, G, S, K), format)
    return normal(seed, T, G * R, K), k_GSK, v_GSK


def run(backend, q_THK, k_GSK, v_GSK, window=None):
    return attention(backend, q_THK, [k_GSK], [v_GSK], spans=(Span(0, len(q_THK), None),), window=window)


def expected(q_THK, k_GSK, v_GSK, window=None):
    """The definition in float64, on the numbers that the cache holds."""
    wide = q_THK.astype(np.float64), k_GSK.astype(np.float64), v_GSK.astype(np.float64)
    return run(DOUBLE, *wide, window)


def tolerance(backend, format, K):
    """Pairs of bfloat16 are multiplied where the cache is that coarse, the processor can and heads can be halved."""
    return ROUNDED if format != "f32" and K % 32 == 0 and backend.features else NOISE


@pytest.mark.parametrize("format", KV_FORMATS)
@given(
    st.integers(0, 999), st.sampled_from([1, 1, 2, 7, 40]), st.integers(0, 1200), st.integers(1, 2),
    st.sampled_from([1, 2, 5, 7, 17]), st.sampled_from([1, 10, 16, 32, 48, 64, 128]),
    st.none() | st.sampled_from([1, 3, 100, 300]),
)  # fmt: skip
def test_equals_the_definition_in_every_format(cpu, format, seed, T, past, G, R, K, window):
    part = draw(seed, T, past + T, G, R, K, format)
    assert_close(run(cpu, *part, window), expected(*part, window), tolerance(cpu, format, K))


@pytest.mark.parametrize("format", KV_FORMATS)
@pytest.mark.parametrize("R", [1, 7, 16, 17])
@pytest.mark.parametrize("window", [None, 37, 400])
def test_many_rows_make_several_blocks(cpu, format, R, window):
    part = draw(R, 300 // R + 20, 700, 1, R, 32, format)
    assert_close(run(cpu, *part, window), expected(*part, window), tolerance(cpu, format, 32))


@pytest.mark.parametrize("S", [255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049])
def test_the_edges_of_tiles_and_chunks(cpu, S):
    for T in (1, 3):
        part = draw(S, T, S, 2, 4, 16)
        assert_close(run(cpu, *part), expected(*part), NOISE)


@pytest.mark.parametrize("format", KV_FORMATS)
def test_room_behind_the_last_key_is_never_read(cpu, format):
    """`stored` fills it with NaN; 1 to 40 keys end anywhere in a vector, a pair, a tile."""
    for S in range(1, 41):
        assert np.isfinite(run(cpu, *draw(S, 1, S, 2, 3, 32, format))).all()


@pytest.mark.parametrize("format", KV_FORMATS)
def test_the_number_of_threads_changes_no_bit(format):
    parts = draw(0, 1, 3000, 2, 7, 64, format), draw(0, 90, 700, 2, 7, 64, format)
    for part in parts:
        alone, *others = (run(backends.get("cpu", threads=n), *part) for n in (1, 2, 2, 2) if n <= most_threads())
        for other in others:
            np.testing.assert_array_equal(other, alone)


def test_a_chunked_prompt_equals_a_whole_one(cpu):
    q_THK, k_GSK, v_GSK = draw(0, 600, 600, 2, 3, 64)
    whole_THK = run(cpu, q_THK, k_GSK, v_GSK)
    for start, stop in [(0, 1), (1, 77), (77, 512), (512, 600)]:
        part_THK = run(cpu, q_THK[start:stop], k_GSK[:, :stop], v_GSK[:, :stop])
        assert_close(part_THK, whole_THK[start:stop], NOISE)


def test_sequences_of_all_kinds_in_one_step(cpu):
    shapes = [(1, 1), (1, 800), (5, 5), (100, 300), (1, 513)]
    parts = [draw(n, T, S, 2, 7, 64, KV_FORMATS[n % 3]) for n, (T, S) in enumerate(shapes)]
    stops = np.cumsum([T for T, _ in shapes]).tolist()
    spans = tuple(Span(start, stop, None) for start, stop in zip([0, *stops], stops))
    q_THK = np.concatenate([q for q, _, _ in parts])
    out_THK = attention(cpu, q_THK, [k for _, k, _ in parts], [v for _, _, v in parts], spans=spans)
    for span, part in zip(spans, parts):
        np.testing.assert_array_equal(out_THK[span.start : span.stop], run(cpu, *part))


@pytest.mark.parametrize("format", KV_FORMATS)
@given(
    st.integers(0, 999), st.lists(st.sampled_from([1, 2, 17, 513, 1023, 1024, 1025, 2100]), min_size=2, max_size=5),
    st.integers(1, 2), st.sampled_from([7, 9]), st.sampled_from([48, 64]),  # of each a case for the kernel and one not
)  # fmt: skip
def test_a_token_of_each_sequence_as_if_it_were_alone(cpu, format, seed, lengths, G, R, K):
    """To the last bit, whoever is in the same step."""
    parts = [draw(seed + n, 1, S, G, R, K, format) for n, S in enumerate(lengths)]
    q_THK, keys, values = np.concatenate([q for q, _, _ in parts]), [k for _, k, _ in parts], [v for _, _, v in parts]
    spans = tuple(Span(n, n + 1, None) for n in range(len(parts)))
    together_THK = attention(cpu, q_THK, keys, values, spans=spans)
    np.testing.assert_array_equal(together_THK, np.concatenate([run(cpu, *part) for part in parts]))


@pytest.mark.parametrize("T", [1, 40])
def test_nan_comes_out_as_nan_and_only_where_it_is_seen(cpu, T):
    for which in range(3):
        part = draw(which, T, 700, 2, 7, 64)
        place = (T - 1, 3, 5) if which == 0 else (0, 699, 5)
        part[which][place] = np.nan
        out_THK = run(cpu, *part)
        heads = [3] if which == 0 else range(7)
        assert np.isnan(out_THK[-1, heads, 5]).all()
        assert np.isfinite(out_THK[-1, 7:]).all()  # the other KV head's
        if which == 0:
            assert np.isfinite(out_THK[:-1]).all() and np.isfinite(out_THK[-1, :3]).all()


@pytest.mark.parametrize("size", [1e-30, 1e-3, 30.0, 1e4, 1e15])
@pytest.mark.parametrize("T", [1, 40])
def test_huge_and_tiny_scores(cpu, size, T):
    q_THK, k_GSK, v_GSK = draw(0, T, 600, 1, 7, 64)
    q_THK *= np.float32(size)
    out_THK = run(cpu, q_THK, k_GSK, v_GSK)
    assert np.isfinite(out_THK).all()
    if size <= 30:  # beyond, which of two keys is the best may be a matter of rounding
        assert_close(out_THK, expected(q_THK, k_GSK, v_GSK), NOISE * max(1, 10 * size))


def test_a_huge_value_does_not_drown_the_others(cpu):
    """Later scores a hundred larger than all before: what was summed so far must shrink to nothing, exactly."""
    q_THK, k_GSK, v_GSK = draw(0, 1, 1500, 1, 4, 16)
    k_GSK[0, 1200] = 40 * q_THK[0, 0]
    assert_close(run(cpu, q_THK, k_GSK, v_GSK), expected(q_THK, k_GSK, v_GSK), 1e-4)


def test_keys_and_values_may_be_strided(cpu):
    """Without a cache they are views of [T, G, K]."""
    q_THK, k_TGK, v_TGK = normal(0, 30, 6, 20), normal(1, 30, 2, 20), normal(2, 30, 2, 20)
    part = q_THK, k_TGK.swapaxes(0, 1), v_TGK.swapaxes(0, 1)
    assert_close(run(cpu, *part), expected(*part), NOISE)
    wide_THK = normal(3, 30, 12, 20)
    part = wide_THK[:, ::2], *part[1:]
    assert_close(run(cpu, *part), expected(*part), NOISE)
