"""Layers as the first one's arrays and a table of addresses: a kernel finds every array of every layer."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.cpu.stack import alike, of_layer, stacked, unchanged

arrays = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@numba.njit
def read(first, address_LP, layer, out):
    """The sum of each array of that layer, by its own shape and strides."""
    (a, (b, nothing)), c = of_layer(first, address_LP, layer)
    out[:] = 0
    for i in range(a.shape[0]):
        out[0] += a[i]
    for i in range(b.shape[0]):
        for j in range(b.shape[1]):
            out[1] += (1 + i + 2 * j) * b[i, j]
    out[2] = c[0] if nothing is None else -1


@given(layers=st.integers(1, 5), D=st.integers(0, 7), J=st.integers(1, 5), random=arrays)
def test_every_array_of_every_layer_is_found(layers, D, J, random):
    """Turned arrays, empty ones and ones that are not there among them."""
    many = [
        (
            (random.standard_normal(D), (random.integers(-9, 9, (J, 6)).astype(np.int32).T, None)),
            random.integers(0, 99, 3).astype(np.uint8),
        )
        for _ in range(layers)
    ]
    stack, out = stacked(many), np.empty(3)
    assert stack.address_LP.shape == (layers, 3)
    for layer, ((a, (b, _)), c) in enumerate(many):
        read(stack.layers[0], stack.address_LP, layer, out)
        weighted = (1 + np.arange(6)[:, None] + 2 * np.arange(J)) * b
        np.testing.assert_allclose(out, [a.sum(), weighted.sum(), c[0]])


def changed(array, name):
    if name == "type":
        return array.astype(np.float64)
    if name == "order":
        return np.asfortranarray(array)
    if name == "writeable":
        array = array.copy()
        array.flags.writeable = False
        return array
    if name == "alignment":
        return np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1).reshape(array.shape)
    return np.zeros((*array.shape[:-1], 2 * array.shape[-1]), np.float32)[..., ::2]


@pytest.mark.parametrize("name", ["type", "order", "writeable", "alignment", "strides"])
def test_layers_that_a_kernel_would_take_for_others_are_no_stack(name):
    one, other = np.ones((3, 4), np.float32), changed(np.ones((3, 4), np.float32), name)
    assert not alike(one, other) and alike((one, one), (one, one.copy()))
    assert stacked([(one, other), (one, one)]) is None
    assert stacked([(one, None), (one, one)]) is None
    assert stacked([(one, one), (one, one.copy())]) is not None


def test_the_same_objects_and_no_equal_ones():
    one, other = np.ones(3), np.ones(3)
    assert unchanged([(one, None), (other, 1)], [(one, None), (other, 1)])
    assert not unchanged([(one,)], [(other,)])
    assert not unchanged([(one,)], [(one,), (one,)]) and not unchanged([], [(one,)])
