"""One token times a matrix in float32 or bfloat16: what decoding spends nearly all its time on.

    y[o] = sum over i of w[o, i] * x[i]  (+ bias[o])

Each weight is read once and used once, so the memory sets the speed: 2 bytes a multiply-add in bf16. The 0.5B's 494 M
weights are 0.99 GB; at 34 GB/s a token cannot take less than 29 ms. All that a kernel can do is not to be slower.

                                                                                  GB/s, 4864 x 896 in bf16
    v1  plain loop            w[o, i] widened one by one                               2.4
    v2  vectors               16 columns at a time, in one sum                        23.1
    v3  four sums             no addition waits for the one before it                 23.2
    v4  rows over threads     one core has too few reads under way for the memory     33.8   (272 MB; a read: 34.2)

                                                                                  GB/s, all layers of the 0.5B (35.5)
    v4  rows over threads     rows of 4864, too, whose vector leaves the nearest cache    28.5
    v5  sent for              the weights 2 KB ahead                                      31.6
    v6  pairs of bfloat16     two columns at once, by AVX512-BF16, weights as they lie    33.2

v6 splits the token's numbers into two bfloat16 each, x = high + low, which is exact to 17 bits: two multiplications,
and still less work than widening every weight.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, within
from backends.cpu.simd import (
    before_line,
    bf16_pairs,
    bits_as_f32,
    constant_i32,
    dot_bf16,
    fma,
    larger,
    load,
    load_part,
    prefetch,
    shuffle,
    smaller,
    store,
    sum_of,
    zeros,
)  # fmt: skip

AHEAD = 512  # pairs: 2 KB; 0.5 to 4 KB measured the same
even, odd = shuffle(tuple(range(0, 32, 2))), shuffle(tuple(range(1, 32, 2)))
sixteen, upper_half = constant_i32(16), constant_i32(-(1 << 16))


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


@inner
@allocating
def in_two(x_I):
    """x = high + low, both as pairs of neighbours in bfloat16, with zeros behind. Infinity has no low part."""
    lanes = (x_I.size + 31) // 32 * 16
    high_j, low_j = from_line_on(np.empty(lanes + 15, np.int32)), from_line_on(np.empty(lanes + 15, np.int32))
    for j in range(0, lanes, 16):
        x, y = load_part(x_I, 2 * j, x_I.size - 2 * j), load_part(x_I, 2 * j + 16, x_I.size - 2 * j - 16)
        first, second = even(x, y), odd(x, y)
        pairs = bf16_pairs(first, second)
        first, second = first - bits_as_f32(pairs << sixteen()), second - bits_as_f32(pairs & upper_half())
        store(high_j, j, pairs)
        store(low_j, j, bf16_pairs(number_or_zero(first), number_or_zero(second)))
    return high_j, low_j


@within
def from_line_on(numbers_j):
    """The array from a cache line's first byte on: else each vector comes out of two lines, and takes twice as long."""
    start = before_line(numbers_j)
    return numbers_j[start : start + numbers_j.size - 15]


@inner
def number_or_zero(x):
    return larger(x, zeros()) + smaller(x, zeros())  # each gives the zero for NaN


@inner
def pairs_times_vector(w_OJ, o, token):
    high_j, low_j = token
    J = w_OJ.shape[1]
    unrolled = J - J % 64
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    e, f, g, h = zeros(), zeros(), zeros(), zeros()
    for j in range(0, unrolled, 64):
        prefetch(w_OJ, (o, j + AHEAD))
        w = load(w_OJ, (o, j))
        a, e = dot_bf16(a, w, load(high_j, j)), dot_bf16(e, w, load(low_j, j))
        prefetch(w_OJ, (o, j + AHEAD + 16))
        w = load(w_OJ, (o, j + 16))
        b, f = dot_bf16(b, w, load(high_j, j + 16)), dot_bf16(f, w, load(low_j, j + 16))
        prefetch(w_OJ, (o, j + AHEAD + 32))
        w = load(w_OJ, (o, j + 32))
        c, g = dot_bf16(c, w, load(high_j, j + 32)), dot_bf16(g, w, load(low_j, j + 32))
        prefetch(w_OJ, (o, j + AHEAD + 48))
        w = load(w_OJ, (o, j + 48))
        d, h = dot_bf16(d, w, load(high_j, j + 48)), dot_bf16(h, w, load(low_j, j + 48))
    for j in range(unrolled, J, 16):
        w = load_part(w_OJ, (o, j), J - j)
        a, e = dot_bf16(a, w, load(high_j, j)), dot_bf16(e, w, load(low_j, j))
    return sum_of(((a + b) + (c + d)) + ((e + f) + (g + h)))
