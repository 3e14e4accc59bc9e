"""RoPE: the pair (a, b) = (x[i], x[i + K/2]) becomes (a cos - b sin, a sin + b cos).

Bytes that must move: x is read and out written, 8 an element; the angles of a token serve all its heads.

                              1 token    512 tokens     (14 heads of 64; microseconds, the call included)
    v0  NumPy                     8.3           590     seven passes over memory
    v1  plain loops               0.5            57     the compiler makes vectors of the inner one; ours are no faster
    v2  rows over threads                               from 2^17 numbers on
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.rows import F32, SHARED, plain
from backends.cpu.team import shared


def rope(backend, x_TNK, cos_TKh, sin_TKh):
    x_TNK, cos_TKh, sin_TKh = plain(x_TNK), plain(cos_TKh), plain(sin_TKh)
    out_TNK = np.empty(x_TNK.shape, F32)
    if x_TNK.size < SHARED:
        turn_rows(0, len(x_TNK), x_TNK, cos_TKh, sin_TKh, out_TNK)
    else:
        turn_rows_shared(len(x_TNK), x_TNK, cos_TKh, sin_TKh, out_TNK)
    return out_TNK


@kernel
def turn_rows(first, last, x_TNK, cos_TKh, sin_TKh, out_TNK):
    Kh = cos_TKh.shape[1]
    for t in range(first, last):
        for n in range(x_TNK.shape[1]):
            for i in range(Kh):
                a, b, cos, sin = x_TNK[t, n, i], x_TNK[t, n, i + Kh], cos_TKh[t, i], sin_TKh[t, i]
                out_TNK[t, n, i] = a * cos - b * sin
                out_TNK[t, n, i + Kh] = b * cos + a * sin


turn_rows_shared = shared(turn_rows)
