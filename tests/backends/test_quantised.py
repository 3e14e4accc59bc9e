"""Quantised matrices: errors within their bounds, the layout that is documented, and nothing that is not a number."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.quantised import GROUP, ROWS, Quantised, quantise, stored_shapes
from tests.helpers import normal

BITS = pytest.mark.parametrize("bits", [8, 4])
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 100))
SCALES = st.sampled_from([1e-30, 1e-3, 1.0, 1e30, 2e37])


def slowly_widened(matrix: Quantised) -> np.ndarray:
    """The documentation, letter by letter, one weight at a time."""
    O, I = matrix.shape  # noqa: E741
    out_OI = np.zeros((O, I), np.float32)
    for o in range(O):
        p, r = divmod(o, 16)
        for i in range(I):
            if matrix.bits == 8:
                q, b = divmod(i, 4)
                value = int(matrix.values[p, q, r, b]) - 128
            else:
                q, place = divmod(i, 8)
                byte = int(matrix.values[p, q, r, place % 4])
                value = (byte % 16 if place < 4 else byte // 16) - 8
            out_OI[o, i] = np.float32(value) * np.float32(matrix.scales[p, i // 32, r])
    return out_OI


def scale_of_each(matrix: Quantised) -> np.ndarray:
    O, I = matrix.shape  # noqa: E741
    scales_OG = matrix.scales.astype(np.float32).swapaxes(1, 2).reshape(-1, matrix.scales.shape[1])
    return np.abs(np.repeat(scales_OG, GROUP, axis=1)[:O, :I])


def relative_error(weight, approximate) -> float:
    return np.sqrt(np.sum((approximate.astype(np.float64) - weight) ** 2) / np.sum(weight.astype(np.float64) ** 2))


@BITS
@given(st.integers(0, 9), SHAPES, SCALES)
def test_the_layout_is_the_documented_one(bits, seed, shape, scale):
    matrix = quantise(normal(seed, *shape) * np.float32(scale), bits)
    np.testing.assert_array_equal(matrix.astype(np.float32), slowly_widened(matrix))
    assert matrix.values.flags.c_contiguous and matrix.scales.flags.c_contiguous
    assert matrix.nbytes == matrix.values.nbytes + matrix.scales.nbytes
    assert (matrix.values.shape, matrix.scales.shape) == stored_shapes(bits, shape)


@given(st.integers(0, 99), SHAPES, SCALES)
@example(0, (16, 32), 1e-38)  # scales that bfloat16 has few bits for
def test_int8_is_off_by_half_a_scale_at_most(seed, shape, scale):
    weight_OI = normal(seed, *shape) * np.float32(scale)
    matrix = quantise(weight_OI, 8)
    error = np.abs(matrix.astype(np.float64) - weight_OI)
    assert (error <= scale_of_each(matrix) * (0.5 + 1e-6)).all()
    largest = np.abs(weight_OI).max()
    assert scale_of_each(matrix).max() <= largest / 127 * (1 + 2**-7) + 1e-40


@given(st.integers(0, 99), SHAPES, SCALES)
def test_int4_is_no_worse_than_with_the_largest_weight_on_minus_8(seed, shape, scale):
    """Group by group: the plain rule is what the scale was fitted to beat. bfloat16 may cost the fit a little."""
    weight_OI = normal(seed, *shape) * np.float32(scale)
    matrix = quantise(weight_OI, 4)
    error_OI = (matrix.astype(np.float64) - weight_OI) / scale
    assert (np.abs(error_OI) * scale <= 2 * scale_of_each(matrix)).all()
    for start in range(0, shape[1], GROUP):
        group = weight_OI[:, start : start + GROUP].astype(np.float64) / scale
        plain_O1 = np.take_along_axis(group, np.abs(group).argmax(axis=1, keepdims=True), axis=1) / -8
        plain = plain_O1 * np.clip(np.rint(group / plain_O1), -8, 7)
        mine = (error_OI[:, start : start + GROUP] ** 2).sum(axis=1)
        allowed = ((plain - group) ** 2).sum(axis=1) + 1e-4 * (group**2).sum(axis=1)
        assert (mine <= allowed).all()


def test_errors_on_normal_weights_are_the_documented_ones():
    weight_OI = normal(0, 512, 1024)
    assert relative_error(weight_OI, quantise(weight_OI, 8).astype(np.float32)) == pytest.approx(0.0055, abs=1e-4)
    assert relative_error(weight_OI, quantise(weight_OI, 4).astype(np.float32)) == pytest.approx(0.083, abs=5e-4)


def test_int4_uses_both_ends():
    """The largest weight may lie at either end, above or below zero, and still be met."""
    for sign in (1, -1):
        for other in (-0.99, 0.2):  # near the opposite end, or nowhere near
            weight = np.float32([[sign * 8, other * sign * 8, *[sign * 0.1] * 30]])
            assert abs(quantise(weight, 4).astype(np.float32) - weight)[0, :2].max() < 0.6


@BITS
def test_what_can_be_exact_is(bits):
    zero = 1 << bits - 1
    whole = np.arange(1 if bits == 8 else 0, 2 * zero, dtype=np.float32) - zero
    for scale in (1, 0.5, -2, 2.0**-120, 2.0**100):
        weight_OI = np.zeros((3, 32 * -(-len(whole) // 31)), np.float32)
        for group, start in enumerate(range(0, len(whole), 31)):
            part = [zero - 1 if bits == 8 else -8, *whole[start : start + 31]]  # each group has the extreme in it
            weight_OI[1, 32 * group : 32 * group + len(part)] = np.float32(scale) * np.float32(part)
        np.testing.assert_array_equal(quantise(weight_OI, bits).astype(np.float32), weight_OI)


@BITS
@given(st.integers(0, 9), SHAPES, st.data())
def test_rows_are_those_of_the_whole(bits, seed, shape, data):
    matrix = quantise(normal(seed, *shape), bits)
    rows = np.array(data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=5)), int)
    np.testing.assert_array_equal(matrix[rows], matrix.astype(np.float32)[rows], strict=True)


@BITS
@pytest.mark.parametrize("rows", [[40], [-41], [0, 99]])
def test_rows_beyond_the_matrix_are_refused(bits, rows):
    with pytest.raises(IndexError, match="of 40"):
        quantise(normal(0, 40, 8), bits)[np.array(rows)]
    for index in (3, slice(2), np.array([True]), np.array([[1]])):
        with pytest.raises(TypeError, match="whole rows"):
            quantise(normal(0, 40, 8), bits)[index]


@BITS
def test_pieces_of_rows_make_the_whole(bits):
    weight_OI = normal(3, 75, 70)
    whole, cut = quantise(weight_OI, bits), quantise(np.zeros_like(weight_OI), bits)
    for start, stop in ((0, 32), (32, 64), (64, 75)):
        quantise(weight_OI[start:stop], bits, cut.tiles(start, stop))
        np.testing.assert_array_equal(
            whole.tiles(start, stop).astype(np.float32), whole[np.arange(start, stop)], strict=True
        )
    np.testing.assert_array_equal(whole.values, cut.values)
    np.testing.assert_array_equal(whole.scales, cut.scales)


@BITS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (-1, -1)])
def test_what_is_no_number_is_refused(bits, bad, place):
    weight_OI = normal(0, 5, 40)
    weight_OI[place] = bad
    with pytest.raises(ValueError, match="too large" if bad == 3e38 else "NaN or infinity"):
        quantise(weight_OI, bits)


@BITS
def test_zeros_and_the_smallest_numbers(bits):
    assert not quantise(np.zeros((2, 33), np.float32), bits).astype(np.float32).any()
    tiny = np.float32([[1e-45, -1e-44, 1e-42, 0]])
    error = np.abs(quantise(tiny, bits).astype(np.float64) - tiny)
    assert error.max() <= 1.1e-42, "bfloat16 has no scale for less"


@BITS
def test_wrong_parts_are_refused_and_large_matrices_are_widened_in_pieces(bits):
    values, scales = (np.zeros(shape, np.uint8) for shape in stored_shapes(bits, (ROWS, GROUP)))
    Quantised(bits, (ROWS, GROUP), values, scales.astype(ml_dtypes.bfloat16))
    with pytest.raises(ValueError, match="needs"):
        Quantised(bits, (ROWS + 1, GROUP), values, scales.astype(ml_dtypes.bfloat16))
    weight_OI = normal(0, 700, 1000)
    matrix = quantise(weight_OI, bits)
    np.testing.assert_array_equal(matrix.astype(np.float64)[690:], matrix[np.arange(690, 700)].astype(np.float64))
