"""One token times a matrix in float32 or bfloat16: what decoding spends nearly all its time on.

    y[o] = sum over i of w[o, i] * x[i]  (+ bias[o])

Each weight is read once and used once, so the memory sets the speed: 2 bytes a multiply-add in bf16. The 0.5B's 494 M
weights are 0.99 GB; at 34 GB/s a token cannot take less than 29 ms. All that a kernel can do is not to be slower.

                                                                                  GB/s, 4864 x 896 in bf16
    v1  plain loop            w[o, i] widened one by one                               2.4
    v2  vectors               16 columns at a time, in one sum                        23.1
    v3  four sums             no addition waits for the one before it                 23.2
    v4  rows over threads     one core has too few reads under way for the memory     33.8   (272 MB; a read: 34.2)
"""

from __future__ import annotations

from backends.cpu.compiling import inner
from backends.cpu.simd import fma, load, load_part, sum_of, zeros


@inner
def row_times_vector(w_OI, o, x_I):
    I = x_I.size  # noqa: E741
    unrolled = I - I % 64
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    for i in range(0, unrolled, 64):
        a = fma(load(w_OI, (o, i)), load(x_I, i), a)
        b = fma(load(w_OI, (o, i + 16)), load(x_I, i + 16), b)
        c = fma(load(w_OI, (o, i + 32)), load(x_I, i + 32), c)
        d = fma(load(w_OI, (o, i + 48)), load(x_I, i + 48), d)
    for i in range(unrolled, I, 16):
        a = fma(load_part(w_OI, (o, i), I - i), load_part(x_I, i, I - i), a)
    return sum_of((a + b) + (c + d))
