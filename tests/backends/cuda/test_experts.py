"""Experts of few tokens in two launches, and the router, in every format."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from tests.helpers import FORMATS, assert_close, normal
from tinyqwen.blocks.moe import experts, route

NUMPY = backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)


def some_experts(seed, E, D, M, format):
    def place(n, *shape):
        return SimpleNamespace(weight=FORMATS[format](normal(seed + n, *shape)))

    return [
        SimpleNamespace(gate_proj=place(e, M, D), up_proj=place(e + 50, M, D), down_proj=place(e + 99, D, M))
        for e in range(E)
    ]


@pytest.mark.parametrize("format", FORMATS)
@given(SEED, st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_equals_its_definition(gpu, format, seed, T, E, D, M, A):
    weights, random, A = some_experts(seed, E, D, M, format), np.random.default_rng(seed), min(A, E)
    expert_TA = np.stack([random.permutation(E)[:A] for _ in range(T)])
    arrays = normal(seed, T, D), expert_TA, random.random((T, A), np.float32), weights
    with np.errstate(invalid="ignore"):  # OpenBLAS may look at memory beside a small matrix, and meet NaN there
        expected_TD = experts(NUMPY, *arrays)
    assert_close(experts(gpu, *arrays), expected_TD, 5e-6)


@given(SEED, st.integers(1, 9), st.integers(1, 70), st.integers(1, 8), st.booleans(), st.booleans())
def test_the_router_chooses_alike(gpu, seed, T, E, A, normalise, ties):
    x_TD, gate_ED = normal(seed, T, 5), normal(seed + 1, E, 5)
    if ties:
        gate_ED = np.round(gate_ED[:, :1]) * np.float32([[1, 0, 0, 0, 0]])  # many experts are equal
    settings = {"top_k": min(A, E), "normalise": normalise}
    expert_TA, weight_TA = route(gpu, x_TD, gate_ED, **settings)
    expected_TA, expected_weight_TA = route(NUMPY, x_TD, gate_ED, **settings)
    np.testing.assert_array_equal(expert_TA, expected_TA)
    assert_close(weight_TA, expected_weight_TA, 2e-6)


def test_nan_chooses_somebody_and_does_not_hang(gpu):
    expert_TA, weight_TA = route(gpu, np.full((1, 2), np.nan, np.float32), normal(0, 40, 2), top_k=3, normalise=False)
    assert ((expert_TA >= 0) & (expert_TA < 40)).all() and np.isnan(weight_TA).all()
