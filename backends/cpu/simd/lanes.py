"""What moves between lanes or works inside of them: shuffles, dot products of short numbers, tables of bytes.

The `dot_` products and `look_up` are the processor's own instructions: see `features.py`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic

from backends.cpu.simd.vectors import I8, I32, VI32, BFloat, Vector, call, elementwise, f32x16, i32x16


def shuffle(order: tuple[int, ...]):
    """An intrinsic that picks 16 lanes of two vectors: 0 to 15 are the first one's, 16 to 31 the second's."""

    @intrinsic
    def pick(typing, x, y):
        def codegen(context, builder, signature, arguments):
            return builder.shuffle_vector(*arguments, ir.Constant(VI32, list(order)))

        return x(x, y), codegen

    return pick


def interleave(half: int, bits: int):
    """An intrinsic: 16-bit numbers of two vectors in turns, from each run of 8 the first four or (half = 1) the last.

    x = a0 a1 a2 ..., y = b0 b1 b2 ...        half 0: a0 b0 .. a3 b3  a8 b8 ...        half 1: a4 b4 .. a7 b7  a12 ...

    With bytes (bits = 8) likewise from runs of 16. One instruction, because nothing leaves its quarter of the register.
    """
    count = 512 // bits
    run = count // 4

    @intrinsic
    def mixed(typing, x, y):
        def codegen(context, builder, signature, arguments):
            both = [builder.bitcast(vector, ir.VectorType(ir.IntType(bits), count)) for vector in arguments]
            first = [run * quarter + run // 2 * half + n for quarter in range(4) for n in range(run // 2)]
            order = [place for n in first for place in (n, n + count)]
            return builder.bitcast(builder.shuffle_vector(*both, ir.Constant(ir.VectorType(I32, count), order)), VI32)

        return i32x16(x, y), codegen

    return mixed


interleave_low, interleave_high = interleave(0, 16), interleave(1, 16)
interleave_low_bytes, interleave_high_bytes = interleave(0, 8), interleave(1, 8)


@intrinsic
def lower_bytes(typing, x, y):
    """The lower bytes of the 16-bit numbers of two vectors: eight of the one, then eight of the other, four times."""

    def codegen(context, builder, signature, arguments):
        both = [builder.bitcast(vector, ir.VectorType(I8, 64)) for vector in arguments]
        order = [16 * quarter + 2 * n + 64 * which for quarter in range(4) for which in range(2) for n in range(8)]
        return builder.bitcast(builder.shuffle_vector(*both, ir.Constant(ir.VectorType(I32, 64), order)), VI32)

    return i32x16(x, y), codegen


def multiply_add(builder, total, x, y):
    return call(builder, f"llvm.fma.v{total.type.count}f32", total.type, [x, y, total])


def short_dot(name: str, element: ir.Type, per_lane: int, result: Vector):
    def product(builder, total, x, y):
        lanes = total.type.count
        x, y = (builder.bitcast(each, ir.VectorType(element, per_lane * lanes)) for each in (x, y))
        return call(builder, f"llvm.x86.{name}.{32 * lanes}", total.type, [total, x, y])

    return product, result


# Each lane adds to its total x[0] * y[0] + x[1] * y[1] (for bytes up to x[3] * y[3]) of its own 32 bits.
PRODUCTS = {
    "f32": (multiply_add, f32x16),
    "bf16": short_dot("avx512bf16.dpbf16ps", BFloat(), 2, f32x16),
    "i16": short_dot("avx512.vpdpwssd", I32, 1, i32x16),
    "u8_i8": short_dot("avx512.vpdpbusd", I32, 1, i32x16),  # x without sign, y with
}
dot_bf16, dot_i16, dot_u8_i8 = (elementwise(*PRODUCTS[name]) for name in ("bf16", "i16", "u8_i8"))


def look_up_bytes(builder, table, places):
    table, places = (builder.bitcast(each, ir.VectorType(I8, 64)) for each in (table, places))
    return builder.bitcast(call(builder, "llvm.x86.avx512.pshuf.b.512", table.type, [table, places]), VI32)


look_up = elementwise(look_up_bytes, i32x16)  # each byte is a place, 0 to 15, in the table that its quarter holds
