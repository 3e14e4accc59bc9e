"""RMSNorm: out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight.

Bytes that must move: x is read and out written, 8 an element; a row (3.6 KB in the 0.5B) stays in the nearest cache
between the sum of its squares and the scaling, so it comes from memory once.

                              1 token    512 tokens     (D = 896; microseconds, the call included)
    v0  NumPy                     9.0           345
    v1  plain loops               1.1           400     each addition waits for the one before it
    v2  vectors                   0.5            64     four sums of 16
    v3  rows over threads                        35
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.rows import F32, SHARED, plain
from backends.cpu.simd import fill, fma, load, load_part, ones, root, store, store_part, sum_of, zeros
from backends.cpu.team import shared


def rms_norm(backend, x_TD, weight_D, *, eps):
    x_TD, weight_D = plain(x_TD), plain(weight_D)
    out_TD = np.empty(x_TD.shape, F32)
    if x_TD.size < SHARED:
        norm_rows(0, len(x_TD), x_TD, weight_D, eps, out_TD)
    else:
        norm_rows_shared(len(x_TD), x_TD, weight_D, eps, out_TD)
    return out_TD


@kernel
def norm_rows(first, last, x_TD, weight_D, eps, out_TD):
    D = x_TD.shape[1]
    whole = D - D % 16
    for t in range(first, last):
        mean = fill(sum_of_squares(x_TD, t)) / fill(np.float32(D))
        scale = ones() / root(mean + fill(np.float32(eps)))
        for d in range(0, whole, 16):
            store(out_TD, (t, d), load(x_TD, (t, d)) * scale * load(weight_D, d))
        if whole < D:
            rest = load_part(x_TD, (t, whole), D - whole) * scale * load_part(weight_D, whole, D - whole)
            store_part(out_TD, (t, whole), rest, D - whole)


@kernel
def sum_of_squares(x_TD, t):
    """Four sums, so that no addition has to wait for the one before it."""
    D = x_TD.shape[1]
    unrolled = D - D % 64
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for k in range(0, unrolled, 64):
        w, x, y, z = load(x_TD, (t, k)), load(x_TD, (t, k + 16)), load(x_TD, (t, k + 32)), load(x_TD, (t, k + 48))
        a, b, c, d = fma(w, w, a), fma(x, x, b), fma(y, y, c), fma(z, z, d)
    for k in range(unrolled, D, 16):
        w = load_part(x_TD, (t, k), D - k)
        a = fma(w, w, a)
    return sum_of((a + b) + (c + d))


norm_rows_shared = shared(norm_rows)


PART = 64  # rows whose share of the weight's gradient is summed apart: the same sums whoever computes them


def rms_norm_gradient(backend, d_out_TD, x_TD, weight_D, *, eps):
    """Two arrays read and one written, 12 bytes an element."""
    d_out_TD, x_TD, weight_D = plain(d_out_TD), plain(x_TD), plain(weight_D)
    T, D = x_TD.shape
    d_x_TD, d_weight_PD = np.empty((T, D), F32), np.zeros((-(-T // PART), D), F32)
    gradient_parts(len(d_weight_PD), d_out_TD, x_TD, weight_D, eps, d_x_TD, d_weight_PD)
    return d_x_TD, d_weight_PD.sum(axis=0)


@shared
@kernel
def gradient_parts(first, last, d_out_TD, x_TD, weight_D, eps, d_x_TD, d_weight_PD):
    T, D = x_TD.shape
    for part in range(first, last):
        for t in range(part * PART, min((part + 1) * PART, T)):
            mean = fill(sum_of_squares(x_TD, t)) / fill(np.float32(D))
            r = ones() / root(mean + fill(np.float32(eps)))
            dot = zeros()
            for d in range(0, D, 16):
                unit, d_out = load_part(x_TD, (t, d), D - d) * r, load_part(d_out_TD, (t, d), D - d)
                dot = fma(d_out * load_part(weight_D, d, D - d), unit, dot)
                store_part(d_weight_PD, (part, d), fma(d_out, unit, load_part(d_weight_PD, (part, d), D - d)), D - d)
            share = fill(sum_of(dot)) / fill(np.float32(D))
            for d in range(0, D, 16):
                unit, d_out = load_part(x_TD, (t, d), D - d) * r, load_part(d_out_TD, (t, d), D - d)
                store_part(d_x_TD, (t, d), r * (d_out * load_part(weight_D, d, D - d) - unit * share), D - d)
