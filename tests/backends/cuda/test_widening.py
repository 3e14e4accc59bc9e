import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.cuda.widening import widened
from backends.quantised import quantise
from tests.helpers import normal


@pytest.mark.parametrize("bits", [8, 4])
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300))
def test_the_same_numbers_rounded_once(gpu, bits, seed, O, I):  # noqa: E741
    weight = quantise(normal(seed, O, I), bits)
    expected_OI = weight.astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(widened(gpu, weight), expected_OI)
