"""Router and experts of the cpu backend against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.cpu.route import SHARED
from tests.helpers import assert_close, normal
from tinyqwen.blocks.moe import experts, route
from tinyqwen.weights import Node

CPU, NUMPY = backends.get("cpu"), backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)


def ladder(seed, T, E):
    """Logits a quarter apart, shuffled: every float32 program chooses alike. With gate = identity."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(E) for _ in range(T)], np.float32).reshape(T, E) / 4


def mlp(seed, D, M):
    shapes = {"gate_proj": (M, D), "up_proj": (M, D), "down_proj": (D, M)}
    return Node(**{name: Node(weight=normal(seed + n, *shape)) for n, (name, shape) in enumerate(shapes.items())})


@given(SEED, st.integers(0, 6), st.integers(1, 40), st.data(), st.booleans())
def test_the_router_equals_its_definition(seed, T, E, data, normalise):
    x_TE, top_k = ladder(seed, T, E), data.draw(st.integers(1, E))
    settings = {"top_k": top_k, "normalise": normalise}
    expert_TA, weight_TA = route(CPU, x_TE, np.eye(E, dtype=np.float32), **settings)
    expected = route(NUMPY, x_TE, np.eye(E, dtype=np.float32), **settings)
    assert expert_TA.dtype == expected[0].dtype and weight_TA.dtype == np.float32
    np.testing.assert_array_equal(expert_TA, expected[0])
    np.testing.assert_allclose(weight_TA, expected[1], rtol=2e-6)


@pytest.mark.parametrize("T", [1, SHARED, SHARED + 5])
def test_of_equals_the_lower_number_is_chosen(T):
    x_TE = np.tile(np.float32([1, 2, 2, 0, 2, 1]), (T, 1))
    expert_TA, _ = route(CPU, x_TE, np.eye(6, dtype=np.float32), top_k=5, normalise=False)
    assert (expert_TA == [1, 2, 4, 0, 5]).all()


def test_nan_is_passed_on_and_stays_in_its_row():
    x_TE = ladder(0, 3, 7)
    x_TE[1, 3] = np.nan
    with np.errstate(invalid="ignore"):
        expected = route(NUMPY, x_TE, np.eye(7, dtype=np.float32), top_k=3, normalise=False)
    expert_TA, weight_TA = route(CPU, x_TE, np.eye(7, dtype=np.float32), top_k=3, normalise=False)
    np.testing.assert_array_equal(expert_TA, expected[0])
    np.testing.assert_allclose(weight_TA, expected[1], rtol=2e-6)
    assert np.isnan(weight_TA[1]).all() and not np.isnan(weight_TA[[0, 2]]).any()


@given(SEED, st.integers(0, 9), st.integers(1, 8), st.data())
def test_the_experts_equal_their_definition(seed, T, E, data):
    A, D, M = data.draw(st.integers(1, E)), 21, 13
    x_TD, weights = normal(seed, T, D), [mlp(seed + 9 * e, D, M) for e in range(E)]
    rng = np.random.default_rng(seed)
    expert_TA = np.array([rng.permutation(E)[:A] for _ in range(T)], int).reshape(T, A)
    weight_TA = rng.random((T, A), np.float32)
    expected_TD = experts(NUMPY, x_TD, expert_TA, weight_TA, weights)
    assert_close(experts(CPU, x_TD, expert_TA, weight_TA, weights), expected_TD, 3e-6)


class Untouchable:
    def __getattr__(self, name):
        raise AssertionError("an expert that nobody chose was looked at")


def test_an_expert_that_nobody_chose_is_not_read():
    weights = [Untouchable() for _ in range(64)]
    weights[5], weights[60] = mlp(0, 8, 4), mlp(3, 8, 4)
    out_TD = experts(CPU, normal(0, 2, 8), np.array([[60, 5], [5, 60]]), np.full((2, 2), 0.5, np.float32), weights)
    assert np.isfinite(out_TD).all()
