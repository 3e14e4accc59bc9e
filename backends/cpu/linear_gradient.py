"""The way back through `linear`: two products of the size of the first, d_x = d_out @ w and d_w = d_out^T @ x."""

from __future__ import annotations

from backends.cpu.panels import filled_up, times, transposed_times
from backends.cpu.rows import plain


def linear_gradient(backend, d_out_TO, x_TI, weight_OI, bias_O=None):
    (T, O), I = d_out_TO.shape, x_TI.shape[1]  # noqa: E741
    d_bias_O = None if bias_O is None else d_out_TO.sum(axis=0)
    d_out, x, weight = (filled_up(plain(each)) for each in (d_out_TO, x_TI, weight_OI))
    return times(d_out, weight)[:T, :I], transposed_times(d_out, x)[:O, :I], d_bias_O
