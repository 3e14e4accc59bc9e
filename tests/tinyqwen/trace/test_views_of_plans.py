"""The views that need a config alone, and the plan behind them: closed forms, real bytes, any width."""

import tracemalloc

import numpy as np
import pytest

from tests.helpers import dense_config, small_weights, tokens
from tests.tinyqwen.trace.watching import BACKEND, WIDTHS, fits, printed
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.plan import longest_context, memory, wavelengths
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.trace.views_of_plans import print_memory, print_rope
from tinyqwen.weights import count_parameters, random_weights


@pytest.mark.parametrize("size", ["0.5B", "72B", "57B-A14B"])
@pytest.mark.parametrize("itemsize", [4, 2])
def test_memory_equals_closed_forms(size, itemsize):
    config = SIZES[size].config()
    one = memory(config, 32768).stored_in(itemsize)
    L, G, K = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    assert one.weights == itemsize * count_parameters(config)["total"]
    assert one.kv == itemsize * 2 * L * G * K * 32768
    assert one.logits == 4 * config.vocab_size
    T, D, H = 256, config.hidden_size, config.num_attention_heads
    if not config.num_experts:
        # alive at down_proj: x before all layers, before and after attention, its norm, the result; gate, up, product
        F, tables = config.intermediate_size, 4 * T * K
        assert one.activations == 4 * T * (5 * D + 3 * F) + tables
    scores = 2 * 4 * H * T * 32768  # scores and weights
    assert one.scores == pytest.approx(scores, rel=0.2)
    longest = longest_context(one, 32768, 10**12)
    rest = one.total - one.kv
    assert rest + one.kv * longest / 32768 <= 10**12 < rest + one.kv * (longest + 1) / 32768
    assert longest_context(one, 32768, one.weights) == 0


def test_memory_equals_a_real_allocation():
    """The plan's weights and cache are the bytes that arrays have; its activations bound what NumPy allocates."""
    config = dense_config(hidden_size=64, intermediate_size=160, head_dim=16, vocab_size=300)
    tensors = random_weights(config)
    cache = KVCache(BACKEND, config)
    cache.reserve(512)
    one = memory(config, 512)
    assert one.weights == sum(tensor.nbytes for tensor in tensors.values())
    assert one.kv == cache.nbytes
    weights = small_weights(config)
    step = lambda: make_step([(tokens(config, 256), cache)])  # noqa: E731
    forward(BACKEND, config, weights, step())
    tracemalloc.start()
    forward(BACKEND, config, weights, step())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one.activations + one.scores < peak < 1.6 * (one.activations + one.scores)


@WIDTHS
@pytest.mark.parametrize("size", SIZES)
def test_mem(size, width):
    config = SIZES[size].config()
    text = printed(width, print_memory, config)
    fits(text, width)
    H, G = config.num_attention_heads, config.num_key_value_heads
    assert f"{H / G:g} x less" in " ".join(text.split()) and "longest context in" in text
    assert ("128k*" in text) == (config.max_position_embeddings < 131072)


def test_wavelengths_are_those_of_the_formula():
    config = SIZES["7B"].config()
    K = config.head_dim
    expected_Kh = 2 * np.pi * config.rope_theta ** (2 * np.arange(K // 2) / K)
    np.testing.assert_allclose(wavelengths(config), expected_Kh, rtol=1e-9)


def test_wavelengths_and_the_view_of_a_stretched_model():
    plain = SIZES["7B"].config()
    ratio_Kh = wavelengths(plain.with_yarn(4)) / wavelengths(plain)
    np.testing.assert_allclose(ratio_Kh[[0, 23, 40, 63]], [1, 1, 4, 4], rtol=1e-9)
    text = printed(100, print_rope, plain.with_yarn(4))
    assert "theta 1e+06, YaRN 4, a context of 131072" in text
    assert "24 of 64 pairs turn less than once" in text, "as many as without YaRN in 32768 tokens"


@WIDTHS
def test_rope(width):
    config = SIZES["0.5B"].config()
    lines = fits(printed(width, print_rope, config), width)
    rows = [line for line in lines if line[:4].strip().isdecimal()]
    lengths = wavelengths(config)
    assert len(rows) == len(lengths)
    assert [" < " in row for row in rows] == (lengths > config.max_position_embeddings).tolist()
    assert [row.count("█") for row in rows] == sorted(row.count("█") for row in rows)
    marks = {row.index("|" if "|" in row else "┃") for row in rows}
    assert len(marks) == 1, "the context is marked in one column"
    assert "12 of 32 pairs turn less than once" in " ".join(lines)
