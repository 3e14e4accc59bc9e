"""The small bodies against their definitions: odd sizes, nothing at all, views, huge and tiny values, NaN."""

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.cpu.rows import SHARED
from tests.helpers import normal
from tinyqwen.blocks.moe import sigmoid_gate
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope
from tinyqwen.blocks.swiglu import swiglu

CPU, NUMPY = backends.get("cpu"), backends.get("numpy")
SEED, TOKENS, WIDTH = st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 70)
SCALE = st.sampled_from([1e-25, 1e-3, 1.0, 30.0, 1e10])
NOISE = 1e-6  # of each element: a few roundings, and a sum of at most 70 squares


def same(operation, *arrays, tolerance=NOISE, **settings):
    """Element by element, NaN and infinity where the definition has them; inputs unharmed."""
    before = [array.copy() for array in arrays]
    with np.errstate(all="ignore"):
        expected = operation(NUMPY, *arrays, **settings)
    actual = operation(CPU, *arrays, **settings)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert not any(np.shares_memory(actual, array) for array in arrays)
    # A shut gate leaves gate / exp(88) in the definition, which is below 1e-25 here, and nothing in the kernel.
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-25 if operation is swiglu else 1e-36)
    for array, copy in zip(arrays, before):
        np.testing.assert_array_equal(array, copy)
    return actual


def views(x):
    """The same numbers: as they are, with gaps, turned, read-only, in another place of memory, and as float64."""
    wide = np.zeros([2 * size for size in x.shape], np.float32)
    gaps = tuple(slice(None, None, 2) for _ in x.shape)
    wide[gaps] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    odd = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    return [x, wide[gaps], np.asfortranarray(x), fixed, odd, x.astype(np.float64)]


def arrays_of(operation, seed, T, width, scale=1.0):
    """Arguments of that operation, where `width` is an odd size."""
    x_TD, y_TD = normal(seed, T, width) * np.float32(scale), normal(seed + 1, T, width)
    angle_TKh = normal(seed + 3, T, width)
    return {
        "rms_norm": (x_TD, normal(seed + 2, width)),
        "swiglu": (x_TD, y_TD),
        "sigmoid_gate": (normal(seed + 4, T, 1) * np.float32(min(scale, 30)), y_TD),
        "rope": (normal(seed, T, 3, 2 * width) * np.float32(scale), np.cos(angle_TKh), np.sin(angle_TKh)),
    }[operation.name]


OPERATIONS = {rms_norm: {"eps": 1e-6}, swiglu: {}, sigmoid_gate: {}, rope: {}}
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@every_operation
@given(SEED, TOKENS, WIDTH, SCALE)
def test_equals_its_definition(operation, seed, T, width, scale):
    arrays = arrays_of(operation, seed, T, width, scale)
    if operation is rope:  # a difference of two products is as exact as the larger of them
        expected = rope(NUMPY, *arrays)
        allowed = NOISE * max(1e-30, np.abs(arrays[0]).max(initial=0))
        assert np.abs(rope(CPU, *arrays) - expected).max(initial=0) <= allowed
        return
    same(operation, *arrays, **OPERATIONS[operation])


@every_operation
@pytest.mark.parametrize("place", range(3))
def test_memory_may_lie_anyhow(operation, place):
    arrays = arrays_of(operation, 0, 3, 20)
    expected = operation(CPU, *arrays, **OPERATIONS[operation])
    for view in views(arrays[place]) if place < len(arrays) else []:
        given_ = [*arrays[:place], view, *arrays[place + 1 :]]
        np.testing.assert_array_equal(operation(CPU, *given_, **OPERATIONS[operation]), expected)


@every_operation
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_stays_in_its_row_and_is_not_lost(operation, bad):
    arrays = arrays_of(operation, 0, 4, 37)
    clean = operation(CPU, *arrays, **OPERATIONS[operation])
    arrays[0].reshape(4, -1)[2, 0] = bad
    out = operation(CPU, *arrays, **OPERATIONS[operation])
    np.testing.assert_array_equal(np.delete(out, 2, axis=0), np.delete(clean, 2, axis=0))
    if np.isnan(bad):
        assert np.isnan(out[2]).any()
    with np.errstate(invalid="ignore"):
        assert np.isnan(operation(NUMPY, *arrays, **OPERATIONS[operation])[2]).any() == np.isnan(out[2]).any()


@every_operation
def test_shared_rows_equal_those_of_one_thread_to_the_last_bit(operation):
    """Large enough to be shared; a number of rows that does not divide evenly."""
    T = SHARED // 64 + 3
    arrays = arrays_of(operation, 0, T, 64)
    shared = operation(CPU, *arrays, **OPERATIONS[operation])
    for first in (0, T // 2, T - 9):
        few = [array[first : first + 9] if len(array) == T else array for array in arrays]
        np.testing.assert_array_equal(shared[first : first + 9], operation(CPU, *few, **OPERATIONS[operation]))


@pytest.mark.parametrize("size", [50.0, 87.0, 89.0, 1e4, 1e20])
def test_huge_gates_are_open_or_shut(size):
    gate_TF, up_TF = np.float32([[size, -size, 0.0]]), np.float32([[2, 2, 2]])
    np.testing.assert_allclose(swiglu(CPU, gate_TF, up_TF), [[2 * size, 0, 0]], rtol=1e-6, atol=1e-15)
    out_TD = sigmoid_gate(CPU, np.float32([[-size], [size]]), np.ones((2, 3), np.float32))
    np.testing.assert_allclose(out_TD, [[0] * 3, [1] * 3], atol=1e-15)


def test_a_row_whose_squares_overflow_is_nothing():
    """As in the definition: 1e30 squared is infinite in float32, and x / infinity is 0."""
    same(rms_norm, np.float32([[1e30, 1], [3, 4]]), np.float32([1, 10]), eps=1e-6)


def test_no_body_uses_numpys_matrix_product():
    """Its threads wait for the next one by turning in circles: beside ours, they took half of the machine."""
    bodies = Path(backends.__file__).parent / "cpu"
    products = [
        f"{path.name}:{node.lineno}"
        for path in bodies.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult))
        or (isinstance(node, ast.Attribute) and node.attr in ("matmul", "dot", "einsum", "tensordot"))
    ]
    assert not products
