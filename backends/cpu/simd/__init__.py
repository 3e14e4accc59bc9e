"""Portable SIMD for Numba: a vector is a Numba type that *is* an LLVM vector, and an intrinsic is a few lines of LLVM.

    total = zeros()                                   # 16 float32, in one AVX-512 register (or two AVX2, or four NEON)
    for k in range(0, 256, 16):
        total = fma(load(x, k), load(y, k), total)
    result = sum_of(total)

Kernels stay plain Python loops and compile to what a C programmer would write with intrinsics. Why not leave it to the
compiler? A plain loop reads int8 weights at 1.2 GB/s on one core, these vectors at 24 (`matrix_quantised.py`).

Two types:

    f32x16   16 float32
    i32x16   16 lanes of 32 bits, whatever they mean: a whole number, two bfloat16 or int16, four bytes

`vectors.py` has the types, `memory.py` loads and stores, `arithmetic.py` what is done lane by lane, `lanes.py` what
moves between lanes, and the processor's products of short numbers.

An index into an array is a number or a tuple of numbers, as in NumPy. Nothing checks that it lies inside.
Everything here runs on any processor, except the three `dot_` products and `look_up`: see `features.py`.
"""

from backends.cpu.simd.arithmetic import (
    any_bits,
    assume,
    bf16_pairs,
    bits_as_f32,
    bits_as_i32,
    constant_i32,
    fill,
    fill_i32,
    fma,
    larger,
    largest_magnitude,
    largest_of,
    nearest,
    ones,
    root,
    smaller,
    sum_of,
    to_f32,
    to_i32,
    zeros,
)
from backends.cpu.simd.lanes import (
    dot_bf16,
    dot_i16,
    dot_u8_i8,
    interleave_high,
    interleave_high_bytes,
    interleave_low,
    interleave_low_bytes,
    look_up,
    lower_bytes,
    shuffle,
)
from backends.cpu.simd.memory import (
    before_line,
    load,
    load_bytes,
    load_one,
    load_part,
    prefetch,
    prefetch_to_write,
    store,
    store_bf16,
    store_i8,
    store_part,
)
from backends.cpu.simd.vectors import LANES, constant

__all__ = [
    "LANES", "any_bits", "assume", "before_line", "bf16_pairs", "bits_as_f32", "bits_as_i32", "constant",
    "constant_i32", "dot_bf16", "dot_i16", "dot_u8_i8", "fill", "fill_i32", "fma", "interleave_high",
    "interleave_high_bytes", "interleave_low", "interleave_low_bytes", "larger", "largest_magnitude", "largest_of",
    "load", "load_bytes", "load_one", "load_part", "look_up", "lower_bytes", "nearest", "ones", "prefetch",
    "prefetch_to_write", "root", "shuffle", "smaller", "store", "store_bf16", "store_i8", "store_part", "sum_of",
    "to_f32", "to_i32", "zeros",
]  # fmt: skip
