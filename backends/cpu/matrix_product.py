"""A matrix of any format times one token or several, as a part of larger kernels: nearly all of a model's time.

For one token each weight is read once and used once, so the memory sets the speed; for many the arithmetic does. A
kernel sees the format in its arguments' types, and how many tokens there are in the rank of the others: x_I or x_TI.

    the matrix                                                  one token              several tokens
    float32 rows      array(float32, 2d)                        matrix_vector.py       matrix_matrix.py
    bfloat16 rows     array(uint16, 2d)                         matrix_vector.py       matrix_matrix.py
    in pairs          array(int32, 2d)                          matrix_vector.py       matrix_matrix.py
    in 12 bits        (array(uint8, 3d), ...)                   packed_vector.py       matrix_matrix.py, unpacked
    int8 in tiles     (array(int32, 3d), array(uint16, 3d))     quantised_vector.py    matrix_quantised.py
    int4 in tiles     (array(uint32, 3d), array(uint16, 3d))    quantised_vector.py    matrix_quantised.py

Pairs and 12 bits are both bfloat16, where the processor multiplies pairs. Threads share a matrix by its *units*: rows
and tiles of 16 rows for one token, tiles and pairs of tiles for several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from backends.cpu.compiling import allocating, body_of, inner, kernel, within
from backends.cpu.matrix_matrix import (
    packed_tokens,
    packed_tokens_in_pairs,
    rows_of_floats,
    rows_of_packed,
    rows_of_pairs,
)
from backends.cpu.matrix_quantised import pairs_4, pairs_8, rounded_tokens
from backends.cpu.matrix_vector import in_two, pairs_times_vector, row_times_vector
from backends.cpu.packed_vector import packed_times_vector
from backends.cpu.quantised_vector import finish_rows, round_to_8, round_to_16, rows_4, rows_8
from backends.cpu.simd import LANES
from backends.cpu.team import launcher, with_team
from backends.packed import BFLOAT16, Packed
from backends.quantised import Quantised

NO_BIAS = np.zeros(0, np.float32)
NO_BIAS.flags.writeable = False  # as that of a mapped file: kernels are compiled for this, too


def as_kernels_take(weight_OI: Any, features: frozenset[str]) -> Any:
    """The matrix in the types above; None for what cannot be multiplied so on a processor with these features."""
    if isinstance(weight_OI, Quantised):
        return weight_OI.lanes if "vnni" in features else None
    if isinstance(weight_OI, Packed):
        return weight_OI.as_kernels_take if "bf16" in features else None
    if not weight_OI.flags.c_contiguous:
        return None
    if weight_OI.dtype == BFLOAT16:
        return weight_OI.view(np.int32 if "bf16" in features and weight_OI.shape[1] % 2 == 0 else np.uint16)
    return weight_OI if weight_OI.dtype == np.float32 else None


def is_packed(weight: Any) -> bool:
    return isinstance(weight, types.Tuple) and weight[0].dtype == types.uint8


def in_tiles(weight: Any) -> bool:
    return isinstance(weight, types.BaseTuple) and not is_packed(weight)


def in_pairs(weight: Any) -> bool:
    return is_packed(weight) or (not in_tiles(weight) and weight.dtype == types.int32)


def rows_of_unit(weight, y):
    """How many rows a unit has; y is y_O of one token or y_TO of several."""


@overload(rows_of_unit, inline="always")
def _(weight, y):
    rows = {(False, 1): 1, (True, 1): LANES, (False, 2): LANES, (True, 2): 2 * LANES}[in_tiles(weight), y.ndim]
    return lambda weight, y: rows


@within
def units(weight, y):
    """How many units there are to share."""
    rows = rows_of_unit(weight, y)
    return (y.shape[-1] + rows - 1) // rows


def prepared(state, threads, weight, x):
    """The token, or all of them, as this format multiplies them."""


@overload(prepared, inline="always")
def _(state, threads, weight, x):
    int4 = in_tiles(weight) and weight[0].dtype == types.uint32
    if x.ndim == 2:
        if in_tiles(weight):
            zero = 8 if int4 else 128
            return lambda state, threads, weight, x: rounded_tokens(state, threads, x, zero)
        pack = packed_tokens_in_pairs if in_pairs(weight) else packed_tokens
        return lambda state, threads, weight, x: pack(state, threads, x)
    if in_tiles(weight):
        rounded = round_to_8 if int4 else round_to_16
        return lambda state, threads, weight, x: rounded(x)
    return (lambda state, threads, weight, x: in_two(x)) if in_pairs(weight) else (lambda state, threads, weight, x: x)


def multiply(first, last, weight, token, bias_O, y):
    """y = weight @ token + bias_O in units first to last - 1. An empty bias is none."""


@body_of(multiply)
def _(first, last, weight, token, bias_O, y):
    if y.ndim == 1:
        return of_one_token(weight)
    if in_tiles(weight):
        tokens_times = pairs_8 if weight[0].dtype == types.int32 else pairs_4
    else:
        tokens_times = rows_of_packed if is_packed(weight) else rows_of_pairs if in_pairs(weight) else rows_of_floats
    return lambda first, last, weight, token, bias_O, y: tokens_times(first, last, weight, token, bias_O, y)


def of_one_token(weight):
    def rows(first, last, weight, token, bias_O, y):
        for o in range(first, last):
            y[o] = times_vector(weight, o, token)
            if bias_O.size:
                y[o] += bias_O[o]

    def tiles(first, last, weight, token, bias_O, y):
        values_PQr, scales_PGr = weight
        x_j, scale_G, start_G = token
        for p in range(first, last):
            finish_rows(rows_of_tile(values_PQr, scales_PGr, p, x_j, scale_G, start_G), p, bias_O, y)

    if is_packed(weight):
        return lambda first, last, weight, token, bias_O, y: packed_times_vector(first, last, weight, token, bias_O, y)
    if not in_tiles(weight):
        times_vector = pairs_times_vector if weight.dtype == types.int32 else row_times_vector
        return rows
    rows_of_tile = rows_8 if weight[0].dtype == types.int32 else rows_4
    return tiles


@inner
def several(first, last, matrices, token, biases, outs):
    """Units first to last - 1 of three matrices end to end, times the same token, or tokens."""
    start = 0
    for n in range(len(matrices)):
        end = start + units(matrices[n], outs[n])
        if first < end and start < last:
            multiply(max(first, start) - start, min(last, end) - start, matrices[n], token, biases[n], outs[n])
        start = end


launch_several = launcher(several)


@within
def launch_three(state, threads, matrices, token, biases, outs):
    all_units = units(matrices[0], outs[0]) + units(matrices[1], outs[1]) + units(matrices[2], outs[2])
    launch_several(state, threads, all_units, matrices, token, biases, outs)


@within
def launch(state, threads, weight, token, bias_O, y):
    """One matrix: the first of three, and no unit of the others. A kernel of its own would take as long to compile."""
    trio = (weight, weight, weight), token, (bias_O, bias_O, bias_O), (y, y, y)
    launch_several(state, threads, units(weight, y), *trio)


@with_team
@kernel
@allocating
def matrix_times_token(state, threads, weight, x_1I, bias_O, y_1O):
    """y_1O = x_1I @ weight.T + bias_O."""
    launch(state, threads, weight, prepared(state, threads, weight, x_1I[0]), bias_O, y_1O[0])


@with_team
@kernel
@allocating
def matrix_times_tokens(state, threads, weight, x_TI, bias_O, y_TO):
    """y_TO = x_TI @ weight.T + bias_O; of 16 outputs or more."""
    launch(state, threads, weight, prepared(state, threads, weight, x_TI), bias_O, y_TO)
