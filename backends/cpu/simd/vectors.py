"""What a vector is to Numba and to LLVM, and the few lines of LLVM that intrinsics are made of."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
F32, I64, I32, I16, I8 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
VF32, VI32, VI64 = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I64, LANES // 2)


class Vector(types.Type):
    def __init__(self, name: str, llvm: ir.Type):
        self.llvm = llvm
        super().__init__(name=name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


f32x16, i32x16 = Vector("f32x16", VF32), Vector("i32x16", VI32)


class BFloat(ir.types.Type):
    """LLVM's `bfloat`, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash("bfloat")


VBF16 = ir.VectorType(BFloat(), LANES)


def splat(value):
    """A constant vector."""
    return ir.Constant(VI32 if isinstance(value, int) else VF32, [value] * LANES)


def broadcast(builder, scalar, vector):
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, vector.count), None)
    return builder.shuffle_vector(builder.insert_element(nothing, scalar, I32(0)), nothing, first)


def call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def constant(value, of=f32x16):
    @intrinsic
    def vector(typing):
        return of(), lambda context, builder, signature, arguments: splat(value)

    return vector


def elementwise(function, of: Vector):
    """An intrinsic of vectors from a function (builder, *vectors) -> vector."""
    arity = function.__code__.co_argcount - 1

    def codegen(context, builder, signature, arguments):
        return function(builder, *arguments)

    if arity == 1:

        @intrinsic
        def one(typing, x):
            return (of(x), codegen) if x in (f32x16, i32x16) else None

        return one
    if arity == 2:

        @intrinsic
        def two(typing, x, y):
            return (of(x, y), codegen) if x in (f32x16, i32x16) else None

        return two

    @intrinsic
    def three(typing, x, y, z):
        return of(x, y, z), codegen

    return three


def round_to_bf16(builder, x):
    """The bfloat16 nearest to each float32, in the lower 16 bits of its lane; ties to even, NaN stays NaN."""
    bits = builder.bitcast(x, VI32)
    odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, splat(0x7FFF))), splat(16))
    quiet_nan = builder.or_(builder.lshr(bits, splat(16)), splat(0x40))
    return builder.select(builder.fcmp_unordered("uno", x, x), quiet_nan, rounded)
