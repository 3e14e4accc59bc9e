"""Constants, sums and products, comparisons, roundings: lane by lane, or of all lanes to one number."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from backends.cpu.simd.vectors import (
    F32,
    I8,
    I16,
    I32,
    LANES,
    VBF16,
    VF32,
    VI32,
    broadcast,
    call,
    constant,
    elementwise,
    f32x16,
    i32x16,
    splat,
)


def constant_i32(value):
    return constant(value, i32x16)


zeros, ones, minus_infinity = constant(0.0), constant(1.0), constant(float("-inf"))


@intrinsic
def fill(typing, scalar):
    """The same float32 in every lane."""
    return f32x16(types.float32), lambda context, builder, signature, arguments: broadcast(builder, arguments[0], VF32)


@intrinsic
def fill_i32(typing, scalar):
    """The same 32-bit number in every lane."""
    return i32x16(types.int32), lambda context, builder, signature, arguments: broadcast(builder, arguments[0], VI32)


fma = elementwise(lambda builder, x, y, z: call(builder, "llvm.fma.v16f32", VF32, [x, y, z]), f32x16)  # x * y + z
# The second where either is NaN: one instruction. What holds a NaN shows it in exp(x - largest) anyway.
smaller = elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y), f32x16)
larger = elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y), f32x16)
nearest = elementwise(lambda builder, x: call(builder, "llvm.rint.v16f32", VF32, [x]), f32x16)
magnitude = elementwise(lambda builder, x: call(builder, "llvm.fabs.v16f32", VF32, [x]), f32x16)
root = elementwise(lambda builder, x: call(builder, "llvm.sqrt.v16f32", VF32, [x]), f32x16)
to_i32 = elementwise(lambda builder, x: builder.fptosi(x, VI32), i32x16)
to_f32 = elementwise(lambda builder, x: builder.sitofp(x, VF32), f32x16)
bits_as_f32 = elementwise(lambda builder, x: builder.bitcast(x, VF32), f32x16)
bits_as_i32 = elementwise(lambda builder, x: builder.bitcast(x, VI32), i32x16)

FLOAT_OPERATORS = {
    operator.add: elementwise(lambda builder, x, y: builder.fadd(x, y), f32x16),
    operator.sub: elementwise(lambda builder, x, y: builder.fsub(x, y), f32x16),
    operator.mul: elementwise(lambda builder, x, y: builder.fmul(x, y), f32x16),
    operator.truediv: elementwise(lambda builder, x, y: builder.fdiv(x, y), f32x16),
}
WHOLE_OPERATORS = {
    operator.add: elementwise(lambda builder, x, y: builder.add(x, y), i32x16),
    operator.sub: elementwise(lambda builder, x, y: builder.sub(x, y), i32x16),
    operator.and_: elementwise(lambda builder, x, y: builder.and_(x, y), i32x16),
    operator.or_: elementwise(lambda builder, x, y: builder.or_(x, y), i32x16),
    operator.lshift: elementwise(lambda builder, x, y: builder.shl(x, y), i32x16),
    operator.rshift: elementwise(lambda builder, x, y: builder.lshr(x, y), i32x16),
}


def give_operator(symbol):
    def typed(x, y):
        for of, operators in ((f32x16, FLOAT_OPERATORS), (i32x16, WHOLE_OPERATORS)):
            if x == of and y == of and symbol in operators:
                function = operators[symbol]
                return lambda x, y: function(x, y)
        return None

    overload(symbol, inline="always")(typed)


for symbol in {*FLOAT_OPERATORS, *WHOLE_OPERATORS}:
    give_operator(symbol)


def reduction(name):
    @intrinsic
    def reduce(typing, x):
        def codegen(context, builder, signature, arguments):
            start = [F32(-0.0)] if name == "fadd" else []
            kind = ir.FunctionType(F32, [*(number.type for number in start), VF32])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v16f32")
            return builder.call(function, [*start, arguments[0]], fastmath=("reassoc",))

        return types.float32(x), codegen

    return reduce


sum_of, largest_of = reduction("fadd"), reduction("fmaximum")


@intrinsic
def any_bits(typing, x):
    """Whether any bit of an i32x16 is set."""

    def codegen(context, builder, signature, arguments):
        both = call(builder, f"llvm.vector.reduce.or.v{LANES}i32", I32, arguments)
        return builder.zext(builder.icmp_unsigned("!=", both, I32(0)), I8)

    return types.boolean(x), codegen


@intrinsic
def largest_magnitude(typing, x, y):
    """The largest |number| of two vectors, and NaN if one of them is NaN: as bits, NaN is larger than infinity."""

    def codegen(context, builder, signature, arguments):
        bits = [builder.and_(builder.bitcast(argument, VI32), splat(0x7FFFFFFF)) for argument in arguments]
        both = call(builder, "llvm.smax.v16i32", VI32, bits)
        return builder.bitcast(call(builder, "llvm.vector.reduce.smax.v16i32", I32, [both]), F32)

    return types.float32(x, y), codegen


@intrinsic
def bf16_pairs(typing, low, high):
    """Two vectors rounded to bfloat16, lane by lane a pair: `low` in the lower half, `high` in the upper.

    Three instructions where the processor has the type, which is where pairs are wanted (above: twelve for each half).
    """

    def codegen(context, builder, signature, arguments):
        low, high = (
            builder.zext(builder.bitcast(builder.fptrunc(number, VBF16), ir.VectorType(I16, LANES)), VI32)
            for number in arguments
        )
        return builder.or_(low, builder.shl(high, splat(16)))

    return i32x16(low, high), codegen


@intrinsic
def assume(typing, condition):
    """Tell the compiler what it cannot know; nothing is checked."""

    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.assume", ir.VoidType(), [builder.trunc(arguments[0], ir.IntType(1))])
        return context.get_dummy_value()

    return types.void(types.boolean), codegen
