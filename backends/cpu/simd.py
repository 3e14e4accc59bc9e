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

and the same with 8 lanes, f32x8 and i32x8, for the few loops in which half the lanes would have nothing to do.

An index into an array is a number or a tuple of numbers, as in NumPy. Nothing checks that it lies inside.
Everything here runs on any processor, except the three `dot_` products and `look_up`: see `features.py`.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
F32, I64, I32, I16, I8 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
VF32, VI32 = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


class Vector(types.Type):
    def __init__(self, name: str, llvm: ir.Type):
        self.llvm = llvm
        super().__init__(name=name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


f32x16, f32x8 = Vector("f32x16", VF32), Vector("f32x8", ir.VectorType(F32, 8))
i32x16, i32x8 = Vector("i32x16", VI32), Vector("i32x8", ir.VectorType(I32, 8))


# ---- memory ------------------------------------------------------------------------------------------------------


def pointer(context, builder, array_type, array, index_type, index, element):
    """The address of array[index], as a pointer to that LLVM type."""
    view = context.make_array(array_type)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, view.strides)
    if array_type.layout == "C":  # known when compiling, so that neighbours get addresses that differ by a constant
        strides = [*strides[:-1], I64(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))]
    if isinstance(index_type, types.BaseTuple):
        indices, kinds = cgutils.unpack_tuple(builder, index), index_type.types
    else:
        indices, kinds = [index], [index_type]
    offset = I64(0)
    for number, kind, stride in zip(indices, kinds, strides, strict=True):
        offset = builder.add(offset, builder.mul(context.cast(builder, number, kind, types.intp), stride))
    return builder.bitcast(builder.gep(builder.bitcast(view.data, I8.as_pointer()), [offset]), element.as_pointer())


def splat(value):
    """A constant vector."""
    return ir.Constant(VI32 if isinstance(value, int) else VF32, [value] * LANES)


def broadcast(builder, scalar, vector):
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, vector.count), None)
    return builder.shuffle_vector(builder.insert_element(nothing, scalar, I32(0)), nothing, first)


def call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def first_lanes(context, builder, count, kind):
    """The mask that is true in the first `count` lanes."""
    count = context.cast(builder, count, kind, types.int32)
    lanes = ir.Constant(VI32, list(range(LANES)))
    return builder.icmp_signed("<", lanes, broadcast(builder, count, VI32))


def widen_bf16(builder, number):
    """A bfloat16 is the upper half of a float32."""
    wide, half, to = (VI32, splat(16), VF32) if isinstance(number.type, ir.VectorType) else (I32, I32(16), F32)
    return builder.bitcast(builder.shl(builder.zext(number, wide), half), to)


def widen_i8(builder, number):
    vector = isinstance(number.type, ir.VectorType)
    return builder.sitofp(builder.sext(number, VI32 if vector else I32), VF32 if vector else F32)


# What an array's numbers are in memory, in a vector, and how they get there.
KINDS = {
    types.float32: (F32, f32x16, lambda builder, number: number),
    types.uint16: (I16, f32x16, widen_bf16),  # NumPy has no bfloat16 that Numba knows: arrays of it come as uint16
    types.int8: (I8, f32x16, widen_i8),
    types.int32: (I32, i32x16, lambda builder, number: number),
    types.uint32: (I32, i32x16, lambda builder, number: number),
}


@intrinsic
def load(typing, array, index):
    """16 numbers from array[index] on; float32, bfloat16 and int8 as f32x16, 32 bits of anything as i32x16."""
    element, of, widen = KINDS[array.dtype]

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        lanes = ir.VectorType(element, LANES)
        loaded = builder.load(pointer(context, builder, array_type, arguments[0], index_type, arguments[1], lanes))
        loaded.align = array.dtype.bitwidth // 8
        return widen(builder, loaded)

    return of(array, index), codegen


@intrinsic
def load_8(typing, array, index):
    """8 numbers from array[index] on: float32 as f32x8, 32 bits of anything as i32x8."""
    of = {types.float32: f32x8, types.int32: i32x8}[array.dtype]

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        loaded = builder.load(pointer(context, builder, array_type, arguments[0], index_type, arguments[1], of.llvm))
        loaded.align = 4
        return loaded

    return of(array, index), codegen


@intrinsic
def load_bytes(typing, array, index):
    """64 bytes of a uint8 array as they are."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        loaded = builder.load(pointer(context, builder, array_type, arguments[0], index_type, arguments[1], VI32))
        loaded.align = 1
        return loaded

    return i32x16(array, index), codegen


@intrinsic
def load_part(typing, array, index, count):
    """The first `count` numbers from array[index] on, and zeros in the lanes behind. Touches no memory behind."""
    element, of, widen = KINDS[array.dtype]

    def codegen(context, builder, signature, arguments):
        array_type, index_type, count_type = signature.args
        lanes, size = ir.VectorType(element, LANES), array.dtype.bitwidth
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], lanes)
        mask, nothing = first_lanes(context, builder, arguments[2], count_type), ir.Constant(lanes, None)
        name = f"llvm.masked.load.v{LANES}{'f' if element is F32 else 'i'}{size}.p0"
        return widen(builder, call(builder, name, lanes, [place, I32(size // 8), mask, nothing]))

    return of(array, index, count), codegen


@intrinsic
def load_one(typing, array, index):
    """The number at array[index] in every lane. x86 does it inside the instruction that uses it."""
    element, of, widen = KINDS[array.dtype]

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        number = builder.load(pointer(context, builder, array_type, arguments[0], index_type, arguments[1], element))
        number.align = array.dtype.bitwidth // 8
        return broadcast(builder, widen(builder, number), of.llvm)

    return of(array, index), codegen


@intrinsic
def store(typing, array, index, vector):
    """Write all 16 lanes at array[index]."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type, vector_type = signature.args
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], vector_type.llvm)
        builder.store(arguments[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, index, vector), codegen


@intrinsic
def store_part(typing, array, index, vector, count):
    """Write the first `count` lanes."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type, vector_type, count_type = signature.args
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], vector_type.llvm)
        mask = first_lanes(context, builder, arguments[3], count_type)
        letter = "f32" if vector_type is f32x16 else "i32"
        name = f"llvm.masked.store.v{LANES}{letter}.p0"
        call(builder, name, ir.VoidType(), [arguments[2], place, I32(1), mask])
        return context.get_dummy_value()

    return types.void(array, index, vector, count), codegen


@intrinsic
def store_bf16(typing, array, index, vector, count):
    """Round the first `count` lanes to bfloat16, to nearest, ties to even, and write them to a uint16 array."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type, _, count_type = signature.args
        lanes = ir.VectorType(I16, LANES)
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], lanes)
        mask = first_lanes(context, builder, arguments[3], count_type)
        narrow = builder.trunc(round_to_bf16(builder, arguments[2]), lanes)
        call(builder, f"llvm.masked.store.v{LANES}i16.p0", ir.VoidType(), [narrow, place, I32(2), mask])
        return context.get_dummy_value()

    return types.void(array, index, vector, count), codegen


# ---- arithmetic --------------------------------------------------------------------------------------------------


def constant(value, of=f32x16):
    @intrinsic
    def vector(typing):
        return of(), lambda context, builder, signature, arguments: splat(value)

    return vector


def constant_i32(value):
    return constant(value, i32x16)


zeros, ones, minus_infinity = constant(0.0), constant(1.0), constant(float("-inf"))


@intrinsic
def zeros_8(typing):
    """Zeros as f32x8."""
    return f32x8(), lambda context, builder, signature, arguments: ir.Constant(f32x8.llvm, None)


@intrinsic
def fill(typing, scalar):
    """The same float32 in every lane."""
    return f32x16(types.float32), lambda context, builder, signature, arguments: broadcast(builder, arguments[0], VF32)


@intrinsic
def fill_i32(typing, scalar):
    """The same 32-bit number in every lane."""
    return i32x16(types.int32), lambda context, builder, signature, arguments: broadcast(builder, arguments[0], VI32)


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


def round_to_bf16(builder, x):
    """The bfloat16 nearest to each float32, in the lower 16 bits of its lane; ties to even, NaN stays NaN."""
    bits = builder.bitcast(x, VI32)
    odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, splat(0x7FFF))), splat(16))
    quiet_nan = builder.or_(builder.lshr(bits, splat(16)), splat(0x40))
    return builder.select(builder.fcmp_unordered("uno", x, x), quiet_nan, rounded)


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
def prefetch(typing, array, index):
    """Ask for the 64 bytes at array[index], to come into the second-level cache. Nothing waits; any address will do."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], I8)
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, I32(0), I32(2), I32(1)])  # to read; level 2; data
        return context.get_dummy_value()

    return types.void(array, index), codegen


@intrinsic
def before_line(typing, array):
    """How many of an array's numbers, of 4 bytes, lie before the first one that begins a cache line."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        to_go = builder.and_(builder.neg(builder.ptrtoint(data, I64)), I64(63))
        return builder.lshr(to_go, I64(2))

    return types.intp(array), codegen


@intrinsic
def assume(typing, condition):
    """Tell the compiler what it cannot know; nothing is checked."""

    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.assume", ir.VoidType(), [builder.trunc(arguments[0], ir.IntType(1))])
        return context.get_dummy_value()

    return types.void(types.boolean), codegen


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


# ---- dot products of short numbers: the processor's own, see features.py -------------------------------------------


class BFloat(ir.types.Type):
    """LLVM's `bfloat`, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash("bfloat")


VBF16 = ir.VectorType(BFloat(), LANES)


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
