import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.swiglu import feed_forward, swiglu
from tinyqwen.weights import Node


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 300), st.sampled_from([0.1, 1.0, 30.0]))
def test_equals_the_formula_in_float64(backend, seed, T, F, scale):
    gate_TF, up_TF = normal(seed, T, F) * np.float32(scale), normal(seed + 1, T, F)
    z_TF = gate_TF.astype(np.float64)
    out_TF = call(backend, swiglu, gate_TF, up_TF)
    assert out_TF.dtype == np.float32
    # Element by element: exp to a few last places, a sum, a quotient and a product.
    np.testing.assert_allclose(out_TF, z_TF / (1 + np.exp(-z_TF)) * up_TF, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("size", [50.0, 88.0, 89.0, 1e4, 1e20])
def test_huge_gates_are_open_or_shut_without_overflow(backend, size):
    """exp(89) is beyond float32, and a warning is an error in these tests."""
    gate_TF, up_TF = np.float32([[size, -size]]), np.float32([[2, 2]])
    np.testing.assert_allclose(call(backend, swiglu, gate_TF, up_TF), [[2 * size, 0]], rtol=1e-6, atol=1e-15)


def test_feed_forward_equals_the_formula_in_float64(backend):
    D, F = 24, 40
    x_TD, gate_FD, up_FD, down_DF = normal(0, 5, D), normal(1, F, D), normal(2, F, D), normal(3, D, F)
    on = backend.xp.asarray
    weights = Node(
        gate_proj=Node(weight=on(gate_FD)), up_proj=Node(weight=on(up_FD)), down_proj=Node(weight=on(down_DF))
    )
    z_TF = x_TD.astype(np.float64) @ gate_FD.T
    expected_TD = (z_TF / (1 + np.exp(-z_TF)) * (x_TD.astype(np.float64) @ up_FD.T)) @ down_DF.T
    assert_close(call(backend, feed_forward, x_TD, weights), expected_TD, 1e-6)  # sums of 24 and 40 products
