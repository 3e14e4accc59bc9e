"""The kernels of training equal their definitions at every size: part tiles, several blocks, one thread and more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.cpu.panels import times, transposed_times
from backends.gradient import leaves, pairs
from tests.gradients import DOUBLE, double
from tests.helpers import assert_close, normal
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.step import Span

CPU = backends.get("cpu")
SEED, ROWS, WIDTH = st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 70)
# Sums of up to 600 products of float32 numbers around 1, relative to the largest sum.
NOISE = 5e-6


def same(operation, arrays, seed=0, tolerance=NOISE, **settings):
    """Gradients here and, of the definition, in float64."""
    out = operation(DOUBLE, *double(arrays), **settings)
    d_out = normal(seed, *out.shape)
    actual = pairs(arrays, operation.gradient_of(CPU, d_out, *arrays, **settings))
    wide = double(arrays)
    expected = pairs(wide, operation.gradient_of(DOUBLE, d_out.astype(np.float64), *wide, **settings))
    for (_, gradient), (_, wanted) in zip(actual, expected, strict=True):
        assert gradient.dtype == np.float32
        assert_close(gradient, wanted, tolerance)


@given(SEED, st.integers(0, 330), st.integers(1, 20), st.integers(1, 20))
def test_products_in_panels(seed, T, tiles_O, tiles_I):
    """More than one block of rows, more than one part of a sum, rows that fill no tile."""
    a_TO, b_OI, b_TI = normal(seed, T, 16 * tiles_O), normal(1, 16 * tiles_O, 16 * tiles_I), normal(2, T, 16 * tiles_I)
    bias_I = normal(3, 16 * tiles_I)
    assert_close(times(a_TO, b_OI, bias_I), a_TO.astype(np.float64) @ b_OI + bias_I, NOISE)
    assert_close(transposed_times(a_TO, b_TI), a_TO.astype(np.float64).T @ b_TI, NOISE)


@given(SEED, ROWS, st.sampled_from([1, 5, 16, 33, 48]), st.sampled_from([7, 16, 32]), st.booleans())
def test_linear(seed, T, O, I, biased):  # noqa: E741
    bias = (normal(3, O),) if biased else ()
    same(linear, (normal(seed, T, I), normal(1, O, I), *bias))


def test_a_training_step_uses_the_panels_and_equals_matrix_matrix():
    x_TI, weight_OI, bias_O = normal(1, 700, 48), normal(2, 32, 48), normal(3, 32)
    expected = x_TI.astype(np.float64) @ weight_OI.T + bias_O
    for T in (700, 129, 128, 17):
        assert_close(linear(CPU, x_TI[:T], weight_OI, bias_O), expected[:T], NOISE)


@given(
    SEED, st.sampled_from([(1, 1), (2, 1), (6, 2), (14, 2), (3, 3)]), st.integers(1, 90), st.integers(0, 40),
    st.sampled_from([4, 10, 16, 32, 40]), st.one_of(st.none(), st.integers(1, 100)),
)  # fmt: skip
def test_attention(seed, heads, T, past, K, window):
    """Also behind a past, and for blocks that begin in the middle of a token's heads."""
    (H, G), S = heads, T + past
    arrays = normal(seed, T, H, K), [normal(1, G, S, K)], [normal(2, G, S, K)]
    same(attention, arrays, spans=[Span(0, T, None)], window=window)


def test_attention_over_many_keys():
    """Strips of s and dp that hold fewer rows than usual; scores that are large."""
    arrays = 4 * normal(1, 40, 6, 16), [4 * normal(2, 2, 9000, 16)], [normal(3, 2, 9000, 16)]
    same(attention, arrays, spans=[Span(0, 40, None)], tolerance=5e-5)


@given(SEED, ROWS, WIDTH, st.sampled_from([0.1, 1.0, 30.0]))
def test_row_by_row(seed, T, width, scale):
    x_TD, y_TD = normal(seed, T, width) * np.float32(scale), normal(1, T, width)
    same(swiglu, (x_TD, y_TD))
    if width > 1:  # of a single number the norm leaves the sign, and a gradient that is rounding
        same(rms_norm, (x_TD, normal(2, width)), eps=1e-6, tolerance=5e-5)


@given(SEED, ROWS, st.integers(1, 600), st.sampled_from([1.0, 30.0, 1e4]))
def test_log_probability(seed, N, V, scale):
    logits_NV, token_N = normal(seed, N, V) * np.float32(scale), np.random.default_rng(seed).integers(0, V, N)
    expected = log_probability(DOUBLE, double(logits_NV), token_N)
    np.testing.assert_allclose(log_probability(CPU, logits_NV, token_N), expected, rtol=2e-6, atol=3e-6 * scale)
    same(log_probability, (logits_NV, token_N), tolerance=3e-6 * max(1, scale / 100))


@pytest.mark.parametrize("token_N", [[0, 1], [0, 1, 7], [0, 1, -8]])
def test_tokens_that_are_not_there_are_refused(token_N):
    with pytest.raises(IndexError, match="3 rows of 7 logits need as many token ids below 7"):
        log_probability(CPU, normal(1, 3, 7), np.array(token_N))


@given(SEED, st.integers(0, 50), st.integers(1, 9), WIDTH)
def test_take_rows(seed, T, N, width):
    same(take_rows, (normal(1, N, width), np.random.default_rng(seed).integers(0, N, T)))


def test_threads_change_nothing():
    """Sums are cut the same way, whoever makes them."""
    one = backends.get("cpu", threads=1)
    cases = [
        (linear, (normal(1, 900, 64), normal(2, 96, 64), normal(3, 96)), {}),
        (rms_norm, (normal(1, 3000, 48), normal(2, 48)), {"eps": 1e-6}),
        (swiglu, (normal(1, 3000, 48), normal(2, 3000, 48)), {}),
        (log_probability, (normal(1, 300, 500), np.arange(300)), {}),
        (
            attention,
            (normal(1, 90, 6, 16), [normal(2, 2, 90, 16)], [normal(3, 2, 90, 16)]),
            {"spans": [Span(0, 90, None)]},
        ),
    ]
    for operation, arrays, settings in cases:
        d_out = normal(9, *operation(one, *arrays, **settings).shape)
        each = [list(leaves(operation.gradient_of(backend, d_out, *arrays, **settings))) for backend in (one, CPU)]
        for alone, shared in zip(*each, strict=True):
            np.testing.assert_array_equal(alone, shared)
