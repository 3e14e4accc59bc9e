import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.linear import add, linear

SEED = st.integers(0, 2**32 - 1)
# A float32 dot product of I terms is off by about sqrt(I) roundings of 6e-8 of its size: 1e-6 at I = 300.
NOISE = 2e-6


@given(SEED, st.integers(1, 9), st.integers(1, 300), st.integers(1, 60), st.booleans())
def test_equals_the_formula_in_float64(backend, seed, T, I, O, with_bias):  # noqa: E741
    x_TI, weight_OI = normal(seed, T, I), normal(seed + 1, O, I)
    bias_O = normal(seed + 2, O) * 10 if with_bias else None
    expected_TO = x_TI.astype(np.float64) @ weight_OI.T + (0 if bias_O is None else bias_O)
    out_TO = call(backend, linear, x_TI, weight_OI, bias_O)
    assert out_TO.dtype == np.float32
    # Allowed relative to the terms that were summed: a sum of one row can cancel to nothing.
    terms = (np.abs(x_TI) @ np.abs(weight_OI).T).max() + (0 if bias_O is None else np.abs(bias_O).max())
    assert np.abs(out_TO - expected_TO).max() <= NOISE * terms


def test_the_weight_is_stored_outputs_first(backend):
    out_TO = call(backend, linear, np.float32([[1, 10]]), np.float32([[1, 2], [3, 4]]), None)
    assert out_TO.tolist() == [[21, 43]]


def test_weights_need_not_be_contiguous(backend):
    """A slice of a fused matrix, or a transposed one, is as good as a copy."""
    x_TI, wide_OI = normal(0, 3, 16), normal(1, 24, 32)
    expected_TO = call(backend, linear, x_TI, wide_OI[::2, ::2].copy())
    assert_close(call(backend, linear, x_TI, wide_OI[::2, ::2]), expected_TO, NOISE)
    assert_close(call(backend, linear, x_TI, np.asfortranarray(wide_OI[::2, ::2])), expected_TO, NOISE)
    assert_close(call(backend, linear, np.asfortranarray(x_TI), wide_OI[::2, ::2]), expected_TO, NOISE)


def test_inputs_are_left_alone(backend):
    x_TI, weight_OI, bias_O = normal(0, 3, 4), normal(1, 5, 4), normal(2, 5)
    before = [array.copy() for array in (x_TI, weight_OI, bias_O)]
    call(backend, linear, x_TI, weight_OI, bias_O)
    call(backend, add, x_TI, x_TI)
    for array, copy in zip((x_TI, weight_OI, bias_O), before):
        np.testing.assert_array_equal(array, copy)


@given(SEED, st.integers(1, 5), st.integers(1, 50))
def test_the_residual_add_is_one_float32_rounding(backend, seed, T, D):
    x_TD, y_TD = normal(seed, T, D), normal(seed + 1, T, D)
    np.testing.assert_array_equal(call(backend, add, x_TD, y_TD), x_TD + y_TD)
