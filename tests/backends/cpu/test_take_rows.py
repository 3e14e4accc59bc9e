"""Rows of a quantised table: exactly the definition's numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.quantised import quantise
from tests.helpers import normal
from tinyqwen.blocks.embedding import take_rows

CPU, NUMPY = backends.get("cpu"), backends.get("numpy")


@pytest.mark.parametrize("bits", [8, 4])
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 100), st.integers(0, 6))
def test_equals_its_definition(bits, seed, rows, columns, count):
    table_ND = quantise(normal(seed, rows, columns), bits)
    row_T = np.random.default_rng(seed).integers(0, rows, count)
    np.testing.assert_array_equal(take_rows(CPU, table_ND, row_T), take_rows(NUMPY, table_ND, row_T), strict=True)


@pytest.mark.parametrize("row", [-1, 20])
def test_a_row_that_is_not_there(row):
    table_ND = quantise(normal(0, 20, 32), 8)
    if row < 0:  # from the end, as everywhere in NumPy
        np.testing.assert_array_equal(take_rows(CPU, table_ND, np.array([row])), table_ND[np.array([19])])
    else:
        with pytest.raises(IndexError):
            take_rows(CPU, table_ND, np.array([row]))
