"""Caches in fewer bits: what they hold, what is lost, and that every backend writes the same."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import Backend
from tests.checkpoints import stories_tensors
from tests.helpers import dense_config, host, logits_of, normal, on, small_weights, tokens
from tinyqwen.kv_cache import KV_FORMATS, KVCache, Scaled, update_cache
from tinyqwen.step import Span
from tinyqwen.weights import random_weights, tree

CONFIG = dense_config()
NUMPY = Backend(np)
every_format = pytest.mark.parametrize("format", KV_FORMATS)


def written(backend, format, k_TGK, v_TGK, past=0):
    """A cache after one update, and what the update returned."""
    cache = KVCache(backend, CONFIG, format)
    cache.reserve(past + len(k_TGK))
    cache.length = past
    return cache, update_cache(backend, k_TGK, v_TGK, spans=(Span(0, len(k_TGK), cache),), layer=1)


@every_format
@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([1e-42, 1e-30, 1.0, 1e30]))
def test_every_backend_stores_the_same_numbers(backend, format, seed, T, size):
    k_TGK, v_TGK = normal(seed, T, 2, 10) * np.float32(size), normal(seed + 1, T, 2, 10)
    k_TGK[0, 0] = 0
    _, expected = written(NUMPY, format, k_TGK, v_TGK, 3)
    _, actual = written(backend, format, backend.xp.asarray(k_TGK), backend.xp.asarray(v_TGK), 3)
    for (mine_GSK,), (theirs_GSK,) in zip(actual, expected):
        assert mine_GSK.shape == (2, 3 + T, 10)
        np.testing.assert_array_equal(
            host(mine_GSK[:, 3:].astype(np.float32)), theirs_GSK[:, 3:].astype(np.float32), strict=True
        )


@given(st.integers(0, 999), st.sampled_from([1e-30, 1.0, 1e30]))
def test_int8_is_off_by_half_a_step_at_most(seed, size):
    x_GSK = normal(seed, 3, 5, 64) * np.float32(size)
    cache = Scaled(np.zeros(x_GSK.shape, np.int8), np.zeros(x_GSK.shape[:2], np.float32))
    cache[:] = x_GSK
    largest_GS1 = np.abs(x_GSK).max(axis=-1, keepdims=True)
    assert (np.abs(cache.astype(np.float64) - x_GSK) <= largest_GS1 / 127 * 0.5001).all()
    assert np.abs(cache.values).max() == 127


@every_format
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_seen(backend, format, strange):
    k_TGK, v_TGK = normal(0, 3, 2, 10), normal(1, 3, 2, 10)
    k_TGK[1, 0, 4] = strange
    _, ((k_GSK,), (v_GSK,)) = written(backend, format, backend.xp.asarray(k_TGK), backend.xp.asarray(v_TGK))
    k_GSK, v_GSK = host(k_GSK.astype(np.float32)), host(v_GSK.astype(np.float32))
    assert not np.isfinite(k_GSK[0, 1, 4]) and np.isfinite(k_GSK[0, [0, 2]]).all() and np.isfinite(k_GSK[1]).all()
    assert np.isfinite(v_GSK).all()


@pytest.mark.many
@every_format
def test_growth_keeps_and_rollback_forgets(backend, format):
    weights, ids = small_weights(CONFIG, backend), tokens(CONFIG, 300)
    large, growing = KVCache(backend, CONFIG, format), KVCache(backend, CONFIG, format)
    large.reserve(600)
    for start in range(0, 300, 60):
        expected_NV = logits_of(backend, CONFIG, weights, ids[start : start + 60], large)
        np.testing.assert_array_equal(
            logits_of(backend, CONFIG, weights, ids[start : start + 60], growing), expected_NV
        )
    assert growing.capacity == 512
    for cache in (large, growing):
        cache.length = 240
    again_NV = logits_of(backend, CONFIG, weights, ids[240:], growing)
    np.testing.assert_array_equal(again_NV, expected_NV)


@every_format
def test_bytes_are_those_of_the_format(format):
    size = {"f32": 10 * 4, "bf16": 10 * 2, "int8": 10 + 4}[format]
    for backend in (NUMPY, backends.get("meta")):
        cache = KVCache(backend, CONFIG, format)
        cache.reserve(300)
        assert cache.bytes_per_token == 2 * 3 * 2 * size
        assert cache.nbytes == 512 * cache.bytes_per_token
    assert KVCache(Backend(np, dtype=np.float64), CONFIG).bytes_per_token == 2 * 3 * 2 * 10 * 8


@every_format
def test_costs_count_the_bytes_of_the_format(format):
    cache, (keys, values) = written(NUMPY, format, normal(0, 4, 2, 10), normal(1, 4, 2, 10), past=6)
    cost = update_cache.cost_of(normal(0, 4, 2, 10), normal(1, 4, 2, 10), spans=(Span(0, 4, cache),), layer=1)
    assert cost.written == 4 * cache.bytes_per_token / 3 and cost.read == 2 * 4 * 2 * 10 * 4
    assert keys[0].nbytes + values[0].nbytes == 10 * cache.bytes_per_token / 3


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"int4.*f32, bf16, int8"):
        KVCache(NUMPY, CONFIG, "int4")


@pytest.mark.parametrize("format, allowed", [("f32", 2e-6), ("bf16", 0.02), ("int8", 0.05)])
def test_logits_move_by_so_much(backend, format, allowed):
    """Relative to the largest logit. Weights of these sizes make sharp attention: real models move less."""
    weights, ids = small_weights(CONFIG, backend), tokens(CONFIG, 60)
    double = tree({name: tensor.astype(np.float64) for name, tensor in random_weights(CONFIG, scale=0.3).items()})
    exact_NV = logits_of(Backend(np, dtype=np.float64), CONFIG, double, ids)
    cache = KVCache(backend, CONFIG, format)
    parts = [logits_of(backend, CONFIG, weights, part, cache) for part in (ids[:40], ids[40:41], ids[41:])]
    off = np.abs(np.concatenate(parts) - exact_NV).max() / np.abs(exact_NV).max()
    assert off < allowed, off
    if format != "f32":
        assert off > 1e-4  # otherwise this cache is none


def test_a_bf16_cache_loses_less_than_bf16_weights():
    """Why it goes with them by default."""
    ids = tokens(CONFIG, 60)
    tensors = random_weights(CONFIG, scale=0.3)
    double = Backend(np, dtype=np.float64)
    exact_NV = logits_of(double, CONFIG, tree({n: w.astype(np.float64) for n, w in tensors.items()}), ids)
    rough = {name: w.astype(ml_dtypes.bfloat16).astype(np.float32) for name, w in tensors.items()}
    by_weights_NV = logits_of(NUMPY, CONFIG, tree(rough), ids)
    by_cache_NV = logits_of(NUMPY, CONFIG, tree(tensors), ids, KVCache(NUMPY, CONFIG, "bf16"))
    assert np.abs(by_cache_NV - exact_NV).mean() < np.abs(by_weights_NV - exact_NV).mean()


@pytest.mark.many
def test_a_bf16_cache_keeps_the_published_story(backend, data):
    """All 256 tokens of it, with float32 weights. (int8 tells another one from token 119 on.)"""
    config, tensors = stories_tensors(data)
    weights = on(backend, tensors)
    ids = json.loads((data / "stories260K" / "greedy256.json").read_text())["ids"]
    cache, said = KVCache(backend, config, "bf16"), ids[:1]
    while len(said) < len(ids):
        said.append(int(logits_of(backend, config, weights, said[-1:], cache)[0].argmax()))
    assert said == ids
