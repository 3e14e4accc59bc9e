"""Sampling over a large vocabulary: exactly the definition's kept set and choice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.cpu.by_likelihood import FEW
from tinyqwen.sampling import Sampling, by_likelihood, likeliest, sample

CPU, NUMPY = backends.get("cpu"), backends.get("numpy")
SEED = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 300) | st.integers(FEW, 5000)
NOBODY = np.array([], int)


def logits(seed, V, steps):
    """Normally distributed, rounded to multiples of 1 / steps: the fewer steps, the more ties. 0: not rounded."""
    x_V = np.random.default_rng(seed).standard_normal(V, dtype=np.float32) * 4
    return np.round(x_V * steps) / np.float32(steps) if steps else x_V


@given(SEED, SIZES, st.sampled_from([0, 1, 4]), st.integers(1, 400))
def test_the_k_likeliest_and_their_ties(seed, V, steps, k):
    x_V = logits(seed, V, steps)
    np.testing.assert_array_equal(likeliest(CPU, x_V, top_k=k), likeliest(NUMPY, x_V, top_k=k))


@pytest.mark.parametrize("V", [640, 641, 703, 704])
def test_the_likeliest_may_stand_anywhere(V):
    """First, last, and in what is left over when the vocabulary is cut into columns."""
    for place in (0, 1, 9, 10, 63, 64, V // 2, V - 2, V - 1):
        x_V = np.zeros(V, np.float32)
        x_V[[place, V - 1 - place]] = 2, 1
        np.testing.assert_array_equal(likeliest(CPU, x_V, top_k=1), likeliest(NUMPY, x_V, top_k=1))
        np.testing.assert_array_equal(likeliest(CPU, x_V, top_k=2), likeliest(NUMPY, x_V, top_k=2))


@given(SEED, SIZES, st.sampled_from([0, 1, 4]))
def test_the_order_is_stable(seed, V, steps):
    """Rounding makes both 0 and -0, which are equals."""
    x_V = logits(seed, V, steps)
    np.testing.assert_array_equal(by_likelihood(CPU, x_V), by_likelihood(NUMPY, x_V))


@pytest.mark.parametrize("values", [[0.0, -0.0, 1, -1], [np.inf, -np.inf, 3e38, -3e38, 1e-45, -1e-45], [np.nan, 1, 0]])
def test_the_order_of_special_numbers(values):
    x_V = np.tile(np.float32(values), FEW)
    np.testing.assert_array_equal(by_likelihood(CPU, x_V), by_likelihood(NUMPY, x_V))


settings = st.builds(
    Sampling,
    do_sample=st.booleans(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 20, 50, 3000]),
    top_p=st.sampled_from([0.1, 0.8, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.1]),
)


@given(SEED, SIZES, st.sampled_from([0, 1]), settings, st.floats(0, 1, exclude_max=True))
def test_the_choice_is_the_definitions(seed, V, steps, sampling, uniform):
    x_V = logits(seed, V, steps)
    before, seen_N = x_V.copy(), np.arange(0, V, 7)
    chosen = [sample(each, x_V, seen_N, sampling=sampling, uniform=uniform) for each in (CPU, NUMPY)]
    assert chosen[0] == chosen[1]
    np.testing.assert_array_equal(x_V, before)


@pytest.mark.parametrize("top_k", [0, 20])
def test_the_whole_vocabulary_a_hundred_times(top_k):
    """Each with dice of its own, on logits as peaked as a model's."""
    x_V = logits(0, 151_936, 0)
    sampling = Sampling(True, 0.7, top_k, 0.8, 0.0, 1.0)
    for uniform in np.linspace(0, 1, 100 if top_k else 10, endpoint=False):
        chosen = [int(sample(each, x_V, NOBODY, sampling=sampling, uniform=uniform)) for each in (CPU, NUMPY)]
        assert chosen[0] == chosen[1]
