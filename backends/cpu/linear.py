"""`linear` on this processor: which of the kernels multiplies.

    nearly always                                          matrix_product.py: one token, or several, in any format
    float32, and many more tokens than outputs             panels.py: training
    int8 and int4 without the instructions for bytes       matrix_quantised.py, widened
    a view whose rows do not lie end to end                a copy is made first

All of them read the weights as they lie in the file: a mapped checkpoint is never copied or turned.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.matrix_product import NO_BIAS, as_kernels_take, matrix_times_token, matrix_times_tokens
from backends.cpu.matrix_quantised import matrix_widened
from backends.cpu.panels import times
from backends.cpu.rows import plain
from backends.cpu.simd import LANES
from backends.packed import Packed
from backends.quantised import GROUP, Quantised


def linear_for(features: frozenset[str]):
    """The body of `linear` for a processor with these features; the definition is in tinyqwen/blocks/linear.py."""

    def linear(backend, x_TI, weight_OI, bias_O=None):
        (T, I), O = x_TI.shape, weight_OI.shape[0]  # noqa: E741
        y_TO = np.empty((T, O), np.float32)
        if not (T and O and I):
            y_TO[...] = 0 if bias_O is None else bias_O
            return y_TO
        x_TI, bias_O = plain(x_TI), NO_BIAS if bias_O is None else plain(bias_O)
        if isinstance(weight_OI, Quantised):
            x_TI = filled_up(x_TI)
        elif isinstance(weight_OI, np.ndarray) and not weight_OI.flags.c_contiguous:
            weight_OI = np.ascontiguousarray(weight_OI)
        if T > 4 * O and weight_OI.dtype == np.float32 and O % LANES == I % LANES == 0:  # as in training
            return times(x_TI, weight_OI.T, bias_O if bias_O.size else None)
        weight = as_kernels_take(weight_OI, features)
        if weight is None and isinstance(weight_OI, Packed):
            return NotImplemented  # the definition unpacks it
        if weight is not None and (T == 1 or O < LANES):  # a router or a gate has too few rows for a tile
            for t in range(T):
                matrix_times_token(weight, x_TI[t : t + 1], bias_O, y_TO[t : t + 1])
        elif weight is None:
            matrix_widened(weight_OI, x_TI, bias_O, y_TO)
        else:
            matrix_times_tokens(weight, x_TI, bias_O, y_TO)
        return y_TO

    return linear


def filled_up(x_TI):
    """With zeros, to whole groups of a quantised matrix's columns."""
    T, I = x_TI.shape  # noqa: E741
    if I % GROUP == 0:
        return x_TI
    filled_TI = np.zeros((T, -(-I // GROUP) * GROUP), np.float32)
    filled_TI[:, :I] = x_TI
    return filled_TI
