"""Sequences that decode together: one launch for all, and each gets the numbers that it would get alone."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
from backends.cuda.arrays import SEQUENCES
from backends.cuda.sample import choose
from tests.backends.cuda.test_attention import in_cache
from tests.helpers import assert_close, dense_config, normal
from tinyqwen.blocks.attention import attention
from tinyqwen.kv_cache import KV_FORMATS, KVCache, update_cache
from tinyqwen.sampling import Sampling, sample
from tinyqwen.step import Span

NUMPY = backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)
TEXTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 200)), min_size=2, max_size=6
)  # T new ones, and so many before


def spans_of(texts, caches=()):
    stops = np.cumsum([T for T, _ in texts]).tolist()
    caches = caches or [None] * len(texts)
    return tuple(Span(stop - T, stop, cache) for (T, _), stop, cache in zip(texts, stops, caches))


@contextmanager
def launches(gpu):
    """The names of the kernels that are launched meanwhile."""
    names, launch = [], gpu.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "launch", lambda name, *rest, **more: (names.append(name), launch(name, *rest, **more)))
        yield names


@settings(max_examples=5)
@given(SEED, TEXTS, st.sampled_from([10, 64]), st.none() | st.integers(1, 150))
@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_attention(gpu, format, seed, texts, K, window):
    keys, values = (
        [in_cache(normal(seed + 10 * n + which, 2, past + T, K), format) for n, (T, past) in enumerate(texts)]
        for which in (1, 2)
    )
    spans = spans_of(texts)
    arrays = normal(seed, spans[-1].stop, 6, K), keys, values
    with launches(gpu) as launched:
        out_THK = attention(gpu, *arrays, spans=spans, window=window)
    assert launched == ["attention_kernel"]
    assert_close(out_THK, attention(NUMPY, *arrays, spans=spans, window=window), 5e-6)


def test_lengths_on_the_device_and_more_sequences_than_a_launch_takes(gpu):
    """What lies behind a length is NaN, and not looked at."""
    texts = [(1, 3 * n % 140) for n in range(SEQUENCES + 3)]
    keys, values = ([np.full((1, 150, 8), np.nan, np.float32) for _ in texts] for _ in range(2))
    for n, (T, past) in enumerate(texts):
        keys[n][:, : past + T], values[n][:, : past + T] = normal(n, 1, past + T, 8), normal(99 + n, 1, past + T, 8)
    q_THK, spans = normal(7, len(texts), 3, 8), spans_of(texts)
    seen = [[kv_GSK[:, : past + T] for kv_GSK, (T, past) in zip(kv, texts)] for kv in (keys, values)]
    expected_THK = attention(NUMPY, q_THK, *seen, spans=spans)
    on_device = [SimpleNamespace(past_1=np.array([past])) for _, past in texts]
    with launches(gpu) as launched:
        out_THK = attention(gpu, q_THK, keys, values, spans=spans_of(texts, on_device))
    assert_close(out_THK, expected_THK, 5e-6)
    assert launched == ["attention_kernel"] * 2


def test_caches_of_several_kinds(gpu):
    """A launch for each kind; the others do not notice."""
    texts, formats = [(1, 5), (1, 90), (2, 7), (1, 60)], ["f32", "bf16", "bf16", "int8"]
    keys, values = (
        [in_cache(normal(10 * n + which, 2, past + T, 64), format)
         for n, ((T, past), format) in enumerate(zip(texts, formats))] for which in (1, 2)
    )  # fmt: skip
    arrays, spans = (normal(0, 5, 4, 64), keys, values), spans_of(texts)
    with launches(gpu) as launched:
        out_THK = attention(gpu, *arrays, spans=spans)
    assert_close(out_THK, attention(NUMPY, *arrays, spans=spans), 5e-6)
    assert len(launched) == 3


@given(SEED, TEXTS, st.sampled_from(KV_FORMATS))
def test_the_cache(gpu, seed, texts, format):
    config = dense_config()
    stored = {}
    k_TGK, v_TGK = (normal(seed + which, sum(T for T, _ in texts), 2, config.head_dim) for which in range(2))
    for backend in (NUMPY, gpu):
        caches = [KVCache(backend, config, format) for _ in texts]
        for cache, (T, past) in zip(caches, texts):
            cache.reserve(past + T)
            cache.length = past
        spans = spans_of(texts, caches)
        with launches(gpu) as launched:
            stored[backend.name] = update_cache(backend, k_TGK, v_TGK, spans=spans, layer=1)
    assert launched == ["update_cache_kernel"]
    for one, other, (T, _) in zip(*([*keys, *values] for keys, values in stored.values()), [*texts, *texts]):
        new = [np.asarray(kv_GSK[:, -T:].astype(np.float32)) for kv_GSK in (one, other)]
        np.testing.assert_array_equal(*new)


@given(SEED, st.integers(2, 5))
def test_each_chooses_in_its_own_way(gpu, seed, N):
    random = np.random.default_rng(seed)
    logits_NV = random.standard_normal((N, 1200), dtype=np.float32)[:, :1111] * 3  # rows with gaps between them
    seen = [random.integers(0, 1111, size) for size in random.integers(0, 9, N)]
    kinds = [
        Sampling(),
        Sampling(True, 0.8, 20, 0.9, 0.01, 1.2),
        Sampling(repetition_penalty=1.5),
        Sampling(True, top_k=3),
    ]
    samplings = [kinds[n] for n in random.integers(0, 4, N)]
    uniform_N = random.random(N)
    with launches(gpu) as launched:
        token_N = choose(gpu, logits_NV, seen, samplings, uniform_N)
    assert launched.count("sample_kernel") == 1 and len(launched) <= 4
    for row in zip(token_N, logits_NV, seen, samplings, uniform_N):
        token, logits_V, seen_S, sampling, uniform = row
        assert token == sample(NUMPY, logits_V, seen_S, sampling=sampling, uniform=uniform)


def test_bfloat16_rows_of_sixteen(gpu):
    """The shape of a server's step: 16 texts, 7 query heads to a KV head, splits that the short ones do not need."""
    texts = [(1, 40 * n) for n in range(16)]
    keys, values = (
        [in_cache(normal(n + which, 2, past + 1, 64), "bf16") for n, (_, past) in enumerate(texts)] for which in (0, 50)
    )
    assert keys[0].dtype == ml_dtypes.bfloat16
    q_THK, spans = normal(3, 16, 14, 64), spans_of(texts)
    expected_THK = attention(NUMPY, q_THK, keys, values, spans=spans)
    with launches(gpu) as launched:
        out_THK = attention(gpu, q_THK, keys, values, spans=spans)
    assert_close(out_THK, expected_THK, 5e-6)
    assert launched == ["attention_kernel"]
