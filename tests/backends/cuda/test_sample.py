"""The whole of sampling in one kernel: the definition's choice, ties and corners included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from tinyqwen.sampling import Sampling, sample

NUMPY = backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 300) | st.integers(1000, 3000)
SHARE = st.just(1.0) | st.floats(0.05, 1)


def logits(seed, V, steps):
    """Normally distributed, rounded to multiples of 1 / steps: the fewer steps, the more ties. 0: not rounded."""
    x_V = np.random.default_rng(seed).standard_normal(V, dtype=np.float32) * 4
    return np.round(x_V * steps) / np.float32(steps) if steps else x_V


@given(SEED, SIZES, st.sampled_from([0, 2]), st.integers(1, 60), SHARE, SHARE, st.floats(0.3, 2), st.floats(0.8, 1.3))
def test_equals_its_definition(gpu, seed, V, steps, k, top_p, min_p, temperature, penalty):
    x_V, random = logits(seed, V, steps), np.random.default_rng(seed)
    seen_N = random.integers(0, V, random.integers(0, 9))
    sampling = Sampling(True, temperature, k, top_p, min_p if min_p < 1 else 0.0, penalty)
    before_V = x_V.copy()
    for uniform in random.random(3).tolist():
        expected = sample(NUMPY, x_V, seen_N, sampling=sampling, uniform=uniform)
        token = sample(gpu, x_V, np.concatenate([seen_N, seen_N[:3]]), sampling=sampling, uniform=uniform)
        assert token.shape == () and token.dtype == np.int64 and int(token) == int(expected)
    np.testing.assert_array_equal(x_V, before_V)


@given(SEED, SIZES, st.sampled_from([0, 2]), st.floats(0.8, 1.3))
def test_greedy_takes_the_first_of_the_likeliest(gpu, seed, V, steps, penalty):
    x_V, seen_N = logits(seed, V, steps), np.array([0, V - 1, 0])
    sampling = Sampling(repetition_penalty=penalty)
    expected = sample(NUMPY, x_V, seen_N, sampling=sampling, uniform=0.0)
    assert int(sample(gpu, x_V, seen_N, sampling=sampling, uniform=0.0)) == int(expected)


@pytest.mark.parametrize("V", [1, 31, 1023, 1024, 1025, 2500])
def test_the_likeliest_may_stand_anywhere(gpu, V):
    for place in {0, V // 2, V - 1}:
        x_V = np.zeros(V, np.float32)
        x_V[place] = 1
        assert int(sample(gpu, x_V, [], sampling=Sampling(), uniform=0.0)) == place
        assert int(sample(gpu, x_V, [], sampling=Sampling(True, top_k=1), uniform=0.99)) == place


def test_without_top_k_the_definition_chooses(gpu):
    """Equal logits of a whole vocabulary, to the last of them."""
    x_V = np.zeros(2000, np.float32)
    assert int(sample(gpu, x_V, np.array([], int), sampling=Sampling(True), uniform=0.99999)) == 1999


def test_signed_zeros_tie(gpu):
    x_V = np.float32([-1, -0.0, 0.0, -2])
    assert int(sample(gpu, x_V, [], sampling=Sampling(), uniform=0.0)) == 1
    tokens = {int(sample(gpu, x_V, [], sampling=Sampling(True, top_k=1), uniform=u)) for u in (0.1, 0.9)}
    assert tokens == {1, 2}
