"""bfloat16 in 12 bits: whatever the numbers are, they come back to the last bit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from backends import get
from backends.packed import BFLOAT16, can_pack, pack

shapes = st.tuples(st.integers(1, 20), st.sampled_from([128, 256, 384]))
# Any bits at all, among them NaN, infinity, zeros and subnormal numbers: mostly blocks that are kept as they were.
anything = shapes.flatmap(lambda shape: npst.arrays(np.uint16, shape)).map(lambda bits: bits.view(BFLOAT16))


def trained(shape, seed=0, strange=0):
    """Numbers as a trained matrix has them, and some that are far off."""
    random = np.random.default_rng(seed)
    weight = (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(BFLOAT16)
    for _ in range(strange):
        weight[random.integers(shape[0]), random.integers(shape[1])] = 2.0 ** int(random.integers(-100, 100))
    return weight


def bits(array):
    return np.ascontiguousarray(array).view(np.uint16)


@settings(max_examples=40)
@given(anything)
def test_any_numbers_come_back(weight):
    np.testing.assert_array_equal(bits(pack(weight).astype(BFLOAT16)), bits(weight))


@pytest.mark.parametrize("shape", [(1, 128), (300, 896), (40, 6272)])
def test_a_trained_matrix_takes_three_quarters(shape):
    weight = trained(shape)
    packed = pack(weight)
    np.testing.assert_array_equal(bits(packed.astype(BFLOAT16)), bits(weight))
    assert packed.shape == shape and len(packed) == shape[0] and packed.size == weight.size
    assert packed.nbytes < 0.8 * weight.nbytes + 8 * (shape[0] + 1)


def test_rows_are_looked_up_as_in_any_table():
    weight = trained((50, 256), strange=5)
    packed, rows = pack(weight), np.array([3, 49, 3, -1, 0])
    np.testing.assert_array_equal(packed[rows], weight[rows].astype(np.float32), strict=True)
    for wrong in (np.array([50]), np.array([-51])):
        with pytest.raises(IndexError):
            packed[wrong]
    for wrong in (3, np.array([[1]]), np.array([0.5])):
        with pytest.raises(TypeError, match="whole rows"):
            packed[wrong]


def test_definitions_take_it():
    from tinyqwen.blocks.linear import linear

    weight, x_TI = trained((30, 128)), np.random.default_rng(1).standard_normal((4, 128), dtype=np.float32)
    for backend in (get("numpy"), get("cpu", features=(), threads=1)):
        np.testing.assert_array_equal(linear(backend, x_TI, pack(weight)), x_TI @ weight.astype(np.float32).T)


def test_what_has_no_whole_blocks_is_not_packed():
    assert [can_pack(shape) for shape in ((4, 128), (4, 896), (4, 100), (0, 128), (4, 0), (128,), (2, 4, 128))] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip
    assert ml_dtypes.bfloat16 == pack(trained((1, 128))).dtype
