"""The angles of RoPE.

Frequencies come from NumPy, so that they are the definition's to the last bit: at position 30,000 one bit more or less
would turn a vector by a thousandth of a radian.
"""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import empty, gpu, launch


def rope_tables(backend, position_T, *, head_dim, theta, scaling=None):
    if scaling is not None:  # YaRN; the definition knows
        return NotImplemented
    T, Kh = len(position_T), head_dim // 2
    position_T = backend.xp.ascontiguousarray(backend.xp.asarray(position_T), np.int64)
    tables = empty(backend, (T, Kh)), empty(backend, (T, Kh))
    if T * Kh:
        frequency_Kh = frequencies(backend, head_dim, theta)
        arguments = position_T, frequency_Kh, *tables, np.int32(T), np.int32(Kh)
        launch(backend, "rope_tables_kernel", -(-T * Kh // 128), 128, arguments)
    return tables


def frequencies(backend, head_dim: int, theta: float):
    """frequency_Kh on the device, where it stays."""
    kept = gpu(backend).kept
    key = "frequencies", head_dim, theta
    if key not in kept:
        exponent_Kh = np.arange(0, head_dim, 2).astype(np.float32) / head_dim
        kept[key] = backend.xp.asarray((1 / np.power(np.float32(theta), exponent_Kh)).astype(np.float32))
    return kept[key]
