"""Rows so long that a lane looks at them several times: by one warp, four, or sixteen of a quantised matrix."""

import ml_dtypes
import numpy as np
import pytest

import backends
from backends.cuda.arrays import MULTIPROCESSORS
from backends.quantised import quantise
from tests.helpers import assert_close, normal
from tinyqwen.blocks.linear import linear

NUMPY = backends.get("numpy")
FORMATS = {
    "f32": lambda matrix: matrix,
    "bf16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": lambda matrix: quantise(matrix, 8),
    "int4": lambda matrix: quantise(matrix, 4),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("I", [1320, 4864, 4870])
def test_long_rows(gpu, format, I):  # noqa: E741
    weight, x_1I, bias_O = FORMATS[format](normal(1, 19, I)), normal(2, 1, I), normal(3, 19)
    expected_1O = linear(NUMPY, x_1I, weight.astype(np.float32), bias_O)
    assert_close(linear(gpu, x_1I, weight, bias_O), expected_1O, 5e-6)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("T", [7, 17, 32])
def test_groups_of_tokens(gpu, format, T):
    weight, x_TI, bias_O = FORMATS[format](normal(1, 37, 72)), normal(2, T, 72), normal(3, 37)
    expected_TO = linear(NUMPY, x_TI, weight.astype(np.float32), bias_O)
    assert_close(linear(gpu, x_TI, weight, bias_O), expected_TO, 5e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_many_rows(gpu, format):
    """So many that every warp, or every four, have some of their own."""
    rows = 4 * MULTIPROCESSORS * 16 + 3
    weight, x_1I = FORMATS[format](normal(1, rows, 40)), normal(2, 1, 40)
    assert_close(linear(gpu, x_1I, weight), linear(NUMPY, x_1I, weight.astype(np.float32)), 5e-6)
