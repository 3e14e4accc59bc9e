"""`linear` for few tokens: bound by reading the weights, see linear.cu. More tokens are bound by arithmetic."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import (
    BFLOAT16,
    as_matrix,
    empty,
    format_of,
    is_small,
    launch,
    plain,
    rows_at_once,
    threads_of,
)
from backends.cuda.cublas import product
from backends.cuda.widening import widened

FEW = 32  # tokens; 8 of them share a reading of the weights
TOKENS, THREADS = 8, 128  # as in linear.cu and matrix.cuh


def linear(backend, x_TI, weight_OI, bias_O=None, *, add_TO=None):
    """As the definition, and `add_TO` is added, if given: the residual stream."""
    matrix = as_matrix(backend, weight_OI)
    (T, I), O = x_TI.shape, weight_OI.shape[0]  # noqa: E741
    if matrix is None or (T > FEW and weight_OI.dtype == np.float32):  # of float32, many tokens: CuPy's own product
        return NotImplemented
    if T > FEW:
        return many_tokens(backend, x_TI, weight_OI, bias_O, add_TO)
    out_TO = empty(backend, (T, O))
    bias_O = None if bias_O is None else plain(backend, bias_O, keep=True)
    bias_format = np.int32(0) if bias_O is None else format_of(bias_O)
    sizes = np.int32(T), np.int32(O), np.int32(I)
    if out_TO.size:
        arguments = plain(backend, x_TI), *matrix, bias_O, bias_format, add_TO, out_TO, *sizes
        if T == 1 and is_small(weight_OI) and matrix[2] is None:
            launch(backend, "linear_few_rows_kernel", O, THREADS, arguments)
        elif T == 1:
            launch(backend, "linear_kernel", -(-O // rows_at_once(weight_OI)), threads_of(weight_OI), arguments)
        else:
            blocks = -(-O // rows_at_once(weight_OI)) * -(-T // TOKENS)
            launch(backend, "linear_tokens_kernel", blocks, THREADS, arguments)
    return out_TO


def many_tokens(backend, x_TI, weight_OI, bias_O, add_TO):
    """By cuBLAS: tokens are rounded to bfloat16, as the weights are; sums are float32."""
    xp, out_TO = backend.xp, empty(backend, (len(x_TI), weight_OI.shape[0]))
    product(xp, xp.ascontiguousarray(x_TI, BFLOAT16), widened(backend, weight_OI), out_TO)
    for more in (bias_O, add_TO):
        if more is not None:
            out_TO += more
    return out_TO
