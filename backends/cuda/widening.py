"""Matrices in 8 or 4 bits as bfloat16, for products that are bound by arithmetic."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import BFLOAT16, as_matrix, empty, launch
from backends.quantised import Quantised

THREADS, WARPS = 128, 4  # as in matrix.cuh


def widened(backend, weight_OI):
    """The matrix in bfloat16: itself, or a quantised one's numbers, rounded."""
    if not isinstance(weight_OI, Quantised):
        return weight_OI.astype(BFLOAT16, copy=False)
    (O, I), out_OI = weight_OI.shape, empty(backend, weight_OI.shape, BFLOAT16)  # noqa: E741
    tiles, words = weight_OI.values.shape[:2]
    arguments = *as_matrix(backend, weight_OI), out_OI, np.int32(O), np.int32(I)
    launch(backend, "widen_kernel", (tiles, max(1, words // (16 * WARPS))), THREADS, arguments)
    return out_OI
