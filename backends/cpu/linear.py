"""`linear` on this processor: which of the kernels multiplies.

              one token              several tokens
    f32       matrix_vector          matrix_matrix, in float32; panels, if there are many more tokens than outputs
    bf16      matrix_vector          matrix_matrix, in pairs of bfloat16 where the processor multiplies those
    int8      matrix_quantised       matrix_quantised, tokens rounded to 8 bits
    int4      (tokens in 16 bits)    the same

All of them read the weights as they lie in the file: a mapped checkpoint is never copied or turned.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from backends.cpu.matrix_matrix import matrix_matrix
from backends.cpu.matrix_quantised import matrix_quantised
from backends.cpu.matrix_vector import matrix_vector
from backends.cpu.panels import times
from backends.cpu.rows import plain
from backends.cpu.simd import LANES
from backends.quantised import Quantised

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NO_BIAS = np.zeros(0, np.float32)


def linear_for(features: frozenset[str]):
    """The body of `linear` for a processor with these features; the definition is in tinyqwen/blocks/linear.py."""
    vnni, bf16 = "vnni" in features, "bf16" in features

    def linear(backend, x_TI, weight_OI, bias_O=None):
        (T, I), O = x_TI.shape, weight_OI.shape[0]  # noqa: E741
        y_TO = np.empty((T, O), np.float32)
        if not (T and O and I):
            y_TO[...] = 0 if bias_O is None else bias_O
            return y_TO
        x_TI, bias_O = plain(x_TI), NO_BIAS if bias_O is None else plain(bias_O)
        if isinstance(weight_OI, Quantised):
            matrix_quantised(weight_OI, x_TI, bias_O, y_TO, vnni=vnni)
            return y_TO
        if not weight_OI.flags.c_contiguous:
            weight_OI = np.ascontiguousarray(weight_OI)
        if T > 4 * O and weight_OI.dtype == np.float32 and O % LANES == I % LANES == 0:  # as in training
            return times(x_TI, weight_OI.T, bias_O if bias_O.size else None)
        is_bf16 = weight_OI.dtype == BFLOAT16
        if is_bf16:
            weight_OI = weight_OI.view(np.uint16)
        if T == 1 or O < LANES:  # a router or a gate has too few rows for a tile
            for t in range(T):
                matrix_vector(weight_OI, x_TI[t], bias_O, y_TO[t])
        else:
            matrix_matrix(weight_OI, x_TI, bias_O, y_TO, in_pairs=is_bf16 and bf16 and I % 2 == 0)
        return y_TO

    return linear
