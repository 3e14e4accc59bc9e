import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.rms_norm import rms_norm

SEED, COUNT, WIDTH = st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 300)
# A mean of up to 300 squares, a root and two products: each rounds at 6e-8, and pairwise sums add a few of those.
NOISE = 1e-6


def reference(x_TD, weight_D, eps):
    x_TD = x_TD.astype(np.float64)
    return x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + eps) * weight_D


@given(SEED, COUNT, WIDTH, st.sampled_from([1e-6, 1e-5, 0.1]))
def test_equals_the_formula_in_float64(backend, seed, T, D, eps):
    x_TD, weight_D = normal(seed, T, D), normal(seed + 1, D)
    out_TD = call(backend, rms_norm, x_TD, weight_D, eps=eps)
    assert out_TD.dtype == np.float32
    assert_close(out_TD, reference(x_TD, weight_D, eps), NOISE)


@given(SEED, COUNT, WIDTH)
def test_every_row_comes_out_with_root_mean_square_one(backend, seed, T, D):
    out_TD = call(backend, rms_norm, normal(seed, T, D) + 3, np.ones(D, np.float32), eps=0.0)
    np.testing.assert_allclose(np.sqrt((out_TD.astype(np.float64) ** 2).mean(axis=-1)), 1, rtol=NOISE)


@given(SEED, WIDTH, st.integers(-40, 40))
def test_loudness_does_not_matter(backend, seed, D, power):
    """Without eps, scaling by a power of two is exact in every step: the same bits."""
    x_TD, weight_D = normal(seed, 3, D) + 3, normal(seed + 1, D)
    quiet_TD = call(backend, rms_norm, x_TD, weight_D, eps=0.0)
    np.testing.assert_array_equal(call(backend, rms_norm, x_TD * np.float32(2.0**power), weight_D, eps=0.0), quiet_TD)


def test_eps_is_added_to_the_mean_square_and_not_to_the_root(backend):
    """A row of eps-sized values tells the two apart: x = 1e-3 has mean square 1e-6 = eps."""
    out_TD = call(backend, rms_norm, np.full((1, 8), 1e-3, np.float32), np.ones(8, np.float32), eps=1e-6)
    np.testing.assert_allclose(out_TD, 0.5**0.5, rtol=NOISE)


def test_zeros_stay_zeros(backend):
    assert not call(backend, rms_norm, np.zeros((2, 5), np.float32), np.ones(5, np.float32), eps=1e-6).any()


def test_rows_do_not_influence_each_other(backend):
    x_TD, weight_D = normal(0, 4, 30), normal(1, 30)
    together_TD = call(backend, rms_norm, x_TD, weight_D, eps=1e-6)
    x_TD[1] = np.nan
    after_TD = call(backend, rms_norm, x_TD, weight_D, eps=1e-6)
    np.testing.assert_array_equal(after_TD[[0, 2, 3]], together_TD[[0, 2, 3]])
    assert np.isnan(after_TD[1]).all()
