"""The way back through `linear`: two products of the size of the first, d_x = d_out @ w and d_w = d_out^T @ x."""

from __future__ import annotations

from backends.cpu.panels import times, transposed_times
from backends.cpu.rows import F32, plain
from backends.cpu.simd import LANES


def linear_gradient(backend, d_out_TO, x_TI, weight_OI, bias_O=None):
    (T, O), I = d_out_TO.shape, x_TI.shape[1]  # noqa: E741
    d_bias_O = None if bias_O is None else d_out_TO.sum(axis=0)
    weight_OI = weight_OI.astype(F32, copy=False)
    if T < LANES or O % LANES or I % LANES:  # no whole tile: small, or a router
        return d_out_TO @ weight_OI, d_out_TO.T @ x_TI, d_bias_O
    d_out_TO, x_TI = plain(d_out_TO), plain(x_TI)
    return times(d_out_TO, weight_OI), transposed_times(d_out_TO, x_TI), d_bias_O
