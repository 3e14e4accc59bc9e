"""A matrix of any format times one token, as a part of larger kernels: what decoding spends nearly all its time on.

Each weight is read once and used once, so the memory sets the speed, and only the formats differ. A kernel sees the
format in its arguments' types:

    float32 rows      array(float32, 2d)                        matrix_vector.py
    bfloat16 rows     array(uint16, 2d)                         matrix_vector.py
    in pairs          array(int32, 2d)                          matrix_vector.py, where the processor multiplies those
    in 12 bits        (array(uint8, 3d), ...)                   packed_vector.py, there, too: bfloat16, packed
    int8 in tiles     (array(int32, 3d), array(uint16, 3d))     quantised_vector.py
    int4 in tiles     (array(uint32, 3d), array(uint16, 3d))    quantised_vector.py

Threads share a matrix by its *units*: rows, or tiles of 16 rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from backends.cpu.compiling import allocating, body_of, inner, kernel, within
from backends.cpu.matrix_vector import in_two, pairs_times_vector, row_times_vector
from backends.cpu.packed_vector import packed_times_vector
from backends.cpu.quantised_vector import finish_rows, round_to_8, round_to_16, rows_4, rows_8
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


def units(weight):
    """How many units there are to share."""


@overload(units, inline="always")
def _(weight):
    if isinstance(weight, types.BaseTuple):
        return lambda weight: weight[0].shape[0]
    return lambda weight: weight.shape[0]


def prepared(weight, x_I):
    """The token as this format multiplies it."""


@overload(prepared, inline="always")
def _(weight, x_I):
    if is_packed(weight):
        return lambda weight, x_I: in_two(x_I)
    if not in_tiles(weight):
        return (lambda weight, x_I: in_two(x_I)) if weight.dtype == types.int32 else (lambda weight, x_I: x_I)
    if weight[0].dtype == types.int32:
        return lambda weight, x_I: round_to_16(x_I)
    return lambda weight, x_I: round_to_8(x_I)


def multiply(first, last, weight, token, bias_O, y_O):
    """y_O = weight @ token + bias_O in units first to last - 1. An empty bias is none."""


@body_of(multiply)
def _(first, last, weight, token, bias_O, y_O):
    def rows(first, last, weight, token, bias_O, y_O):
        for o in range(first, last):
            y_O[o] = times_vector(weight, o, token)
            if bias_O.size:
                y_O[o] += bias_O[o]

    def tiles(first, last, weight, token, bias_O, y_O):
        values_PQr, scales_PGr = weight
        x_j, scale_G, start_G = token
        for p in range(first, last):
            finish_rows(rows_of_tile(values_PQr, scales_PGr, p, x_j, scale_G, start_G), p, bias_O, y_O)

    if is_packed(weight):
        return lambda first, last, weight, token, bias_O, y_O: packed_times_vector(
            first, last, weight, token, bias_O, y_O
        )
    if not in_tiles(weight):
        times_vector = pairs_times_vector if weight.dtype == types.int32 else row_times_vector
        return rows
    rows_of_tile = rows_8 if weight[0].dtype == types.int32 else rows_4
    return tiles


@inner
def several(first, last, matrices, token, biases, outs):
    """Units first to last - 1 of three matrices end to end, times the same token."""
    start = 0
    for n in range(len(matrices)):
        end = start + units(matrices[n])
        if first < end and start < last:
            multiply(max(first, start) - start, min(last, end) - start, matrices[n], token, biases[n], outs[n])
        start = end


launch_several = launcher(several)


@within
def launch(state, threads, weight, token, bias_O, y_O):
    """One matrix: the first of three, and no unit of the others. A kernel of its own would take as long to compile."""
    trio = (weight, weight, weight), token, (bias_O, bias_O, bias_O), (y_O, y_O, y_O)
    launch_several(state, threads, units(weight), *trio)


@with_team
@kernel
@allocating
def matrix_times_token(state, threads, weight, x_1I, bias_O, y_1O):
    """y_1O = x_1I @ weight.T + bias_O."""
    launch(state, threads, weight, prepared(weight, x_1I[0]), bias_O, y_1O[0])
