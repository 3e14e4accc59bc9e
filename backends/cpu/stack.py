"""The arrays of many layers as one argument of a kernel: those of the first layer, and where the others' lie.

Numba looks at every array that a kernel is given, 0.2 to 0.5 us each, and 24 layers have 500. But they are alike: the
same shapes and types at other addresses. So a kernel gets the first layer's arrays and a table of addresses, and asks
for a layer's:

    q_OI, k_OI = of_layer(first, address_LP, layer)

An address keeps no memory alive, so whoever calls the kernel keeps the stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


class Stack(NamedTuple):
    """Layers that are alike.

    layers       the arrays of each, in nested tuples; None stands for one that is not there
    address_LP   where they begin, those that are there
    """

    layers: Sequence[tuple]
    address_LP: np.ndarray


def stacked(layers: Sequence[tuple]) -> Stack | None:
    """The layers' arrays, in nested tuples of one form; None if they are not alike.

    >>> x, y = np.float32([1, 2]), np.float32([3, 4])
    >>> stacked([(x, None), (y, None)]).address_LP.shape, stacked([(x,), (y.astype(np.float64),)])
    ((2, 1), None)
    """
    first = list(arrays_in(layers[0]))
    address_LP = np.empty((len(layers), len(first)), np.int64)
    for layer, arrays in enumerate(map(list, map(arrays_in, layers))):
        if len(arrays) != len(first) or not all(map(alike, first, arrays)):
            return None
        address_LP[layer] = [array.__array_interface__["data"][0] for array in arrays]
    return Stack(layers, address_LP)


def arrays_in(nested: Any) -> Iterator[np.ndarray]:
    """The arrays of nested tuples, in order."""
    if isinstance(nested, tuple):
        for each in nested:
            yield from arrays_in(each)
    elif nested is not None:
        yield nested


def alike(one: Any, other: Any) -> bool:
    """Whether kernels see two arrays, or two nested tuples of them, as of one type, and step through them alike."""
    if isinstance(one, tuple) or isinstance(other, tuple):
        return isinstance(one, tuple) and isinstance(other, tuple) and all(map(alike, one, other))
    a, b = one.flags, other.flags
    kinds = (a.writeable, a.aligned, a.c_contiguous) == (b.writeable, b.aligned, b.c_contiguous)
    return kinds and one.dtype == other.dtype and one.strides == other.strides


def unchanged(before: Sequence[tuple], now: Sequence[tuple]) -> bool:
    """Whether these are the very same objects, layer for layer."""
    return len(before) == len(now) and all(map(is_, chain.from_iterable(before), chain.from_iterable(now)))


@intrinsic
def of_layer(typing, first, address_LP, layer):
    """That layer's arrays: the first's, at its addresses. Nobody counts who uses their memory."""

    def codegen(context, builder, signature, given):
        table, number = context.make_array(signature.args[1])(context, builder, given[1]), ir.IntType(64)
        places = builder.extract_value(table.shape, 1)
        place = builder.gep(table.data, [builder.mul(given[2], places)])

        def at(kind, value, n):
            """The value at that layer's addresses from the n-th on, and how many arrays were in it."""
            if isinstance(kind, types.BaseTuple):
                used = 0
                for index, each in enumerate(kind.types):
                    moved, more = at(each, builder.extract_value(value, index), n + used)
                    value, used = builder.insert_value(value, moved, index), used + more
                return value, used
            if not isinstance(kind, types.Array):
                return value, 0
            array = context.make_array(kind)(context, builder, value)
            address = builder.load(builder.gep(place, [number(n)]))
            array.data = builder.inttoptr(address, array.data.type)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            return array._getvalue(), 1

        return at(signature.args[0], given[0], 0)[0]

    return first(first, address_LP, types.intp), codegen
