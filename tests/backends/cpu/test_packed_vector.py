"""Kernels on bfloat16 in 12 bits: the same bits as on bfloat16 as it lies, for one token and for many."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import get
from backends.cpu.features import detected
from backends.cpu.packing import Packing
from backends.packed import BFLOAT16, pack
from tests.backends.test_packed import anything, bits, trained
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import linear

needs_bf16 = pytest.mark.skipif("bf16" not in detected(), reason="this processor does not multiply bfloat16")


def packed_in_turns(weight, cuts=(), room=np.empty):
    """By the kernels, some rows at a time, the last ones first."""
    packing = Packing(weight.shape, room)
    edges = [0, *sorted({min(cut, len(weight)) for cut in cuts}), len(weight)]
    for first, last in reversed(list(pairwise(edges))):
        if first < last:
            packing.add(first, np.ascontiguousarray(weight[first:last]))
    return packing.end()


@needs_bf16
@settings(max_examples=40)
@given(anything, st.lists(st.integers(1, 20), max_size=2))
def test_kernels_pack_as_the_definition_does(weight, cuts):
    for ours, theirs in zip(packed_in_turns(weight, cuts).parts, pack(weight).parts, strict=True):
        np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8), strict=True)


@needs_bf16
@pytest.mark.parametrize("T", [1, 3, 16, 17, 40])
@pytest.mark.parametrize(("O", "I"), [(5, 128), (16, 896), (37, 896), (50, 6144), (40, 6272), (33, 8960)])
@pytest.mark.parametrize("strange", [0, 9])
def test_products_are_those_of_bfloat16_to_the_last_bit(T, O, I, strange):  # noqa: E741
    """Rows of 6272 and more are taken in pieces."""
    weight, backend = trained((O, I), seed=O + T, strange=strange), get("cpu", threads=2)
    random = np.random.default_rng(I)
    x_TI, bias_O = random.standard_normal((T, I), dtype=np.float32), random.standard_normal(O, dtype=np.float32)
    for bias in (None, bias_O):
        ours, theirs = linear(backend, x_TI, packed_in_turns(weight), bias), linear(backend, x_TI, weight, bias)
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32), strict=True)


@needs_bf16
@pytest.mark.parametrize("count", [1, 5, 40])
def test_rows_of_a_packed_table(count):
    table, row_T = trained((60, 384), strange=6), np.random.default_rng(2).integers(0, 60, count)
    out_TD = take_rows(get("cpu", threads=1), packed_in_turns(table), row_T)
    np.testing.assert_array_equal(out_TD, table[row_T].astype(np.float32), strict=True)


@needs_bf16
def test_infinity_and_nan_stay_what_they_are():
    weight = trained((20, 256))
    weight[3, 7], weight[4, 200] = np.inf, np.nan
    y_TO = linear(get("cpu", threads=1), np.ones((1, 256), np.float32), packed_in_turns(weight))
    assert np.flatnonzero(~np.isfinite(y_TO[0])).tolist() == [3, 4]
    assert bits(packed_in_turns(weight).astype(BFLOAT16))[3, 7] == 0x7F80
