"""Attention on the tensor cores, and keys in many splits: each against the definition, in every order of threads."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
from tests.helpers import assert_close, normal
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.attention_parts import attention_part
from tinyqwen.kv_cache import Scaled
from tinyqwen.step import Span

NUMPY = backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)
WIDTHS = st.sampled_from([10, 64, 72, 130])  # K; 8, 16 or 32 lanes to a key, and one that is no multiple of 8
WINDOW = st.none() | st.integers(1, 150)
# bfloat16 keeps 8 bits: weights and queries are each off by 1/512 at most, and a score of 8 by that much more.
ROUNDED = 0.02


def in_cache(x_GSK, format):
    """A view into a larger cache, as layers have it."""
    G, S, K = x_GSK.shape
    if format == "int8":
        cache = Scaled(np.zeros((G, S + 8, K), np.int8), np.zeros((G, S + 8), np.float32))
    else:
        cache = np.full((G, S + 8, K), np.nan, ml_dtypes.bfloat16 if format == "bf16" else np.float32)
    cache[:, :S] = x_GSK
    return cache[:, :S]


def draw(seed, T, past, G, R, K, format):
    keys, values = (
        in_cache(normal(seed + 1, G, past + T, K), format),
        in_cache(normal(seed + 2, G, past + T, K), format),
    )
    return normal(seed, T, G * R, K), keys, values


@settings(max_examples=4)
@given(SEED, st.integers(10, 40), st.integers(0, 100), st.integers(1, 2), st.sampled_from([7, 8]), WINDOW)
@pytest.mark.parametrize("K", [64, 128])
def test_a_prompt_on_the_tensor_cores(gpu, K, seed, T, past, G, R, window):
    q_THK, keys, values = draw(seed, T, past, G, R, K, "bf16")
    spans = (Span(0, T, None),)
    launched, launch = [], gpu.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "launch", lambda name, *rest, **more: (launched.append(name), launch(name, *rest, **more)))
        out_THK = attention(gpu, q_THK, [keys], [values], spans=spans, window=window)
    assert launched == ["attention_prompt_kernel"]
    assert_close(out_THK, attention(NUMPY, q_THK, [keys], [values], spans=spans, window=window), ROUNDED)


@settings(max_examples=4)
@given(SEED, st.integers(10, 20), st.integers(-30, 90), WINDOW)
def test_a_part_weighs_the_same_there(gpu, seed, T, past, window):
    """Queries that see nothing of it included: 0, and minus infinity."""
    q_THK, keys, values = draw(seed, T, max(0, past), 1, 7, 64, "bf16")
    out_THK, lse_TH = attention_part(gpu, q_THK, keys, values, past=past, window=window)
    expected_THK, expected_TH = attention_part(NUMPY, q_THK, keys, values, past=past, window=window)
    assert_close(out_THK, expected_THK, ROUNDED)
    np.testing.assert_array_equal(np.isinf(lse_TH), np.isinf(expected_TH))
    seen = np.isfinite(expected_TH)
    np.testing.assert_allclose(lse_TH[seen], expected_TH[seen], atol=0.05)


@settings(max_examples=4)
@given(
    SEED, st.integers(1, 3), st.integers(200, 400), st.sampled_from([1, 7]), st.sampled_from([10, 64, 72, 130]), WINDOW
)
@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_keys_in_many_splits(gpu, format, seed, T, past, R, K, window):
    q_THK, keys, values = draw(seed, T, past, 2, R, K, format)
    spans = (Span(0, T, None),)
    out_THK = attention(gpu, q_THK, [keys], [values], spans=spans, window=window)
    assert_close(out_THK, attention(NUMPY, q_THK, [keys], [values], spans=spans, window=window), 5e-6)


def test_a_prompt_of_any_length_is_a_grid_that_a_gpu_takes(gpu, monkeypatch):
    """A GPU takes 65,535 blocks in y and in z, and two thousand million in x."""
    grids = []
    monkeypatch.setattr(gpu, "launch", lambda name, grid, *rest, **more: grids.append(grid))
    T, kv_GSK = 131_072, np.zeros((1, 131_072, 1), np.float32)
    attention(gpu, np.zeros((T, 7, 1), np.float32), [kv_GSK], [kv_GSK], spans=(Span(0, T, None),))
    ((x, y, z),) = grids
    assert x == T * 7 // 8 and max(y, z) <= 65_535
