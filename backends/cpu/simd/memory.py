"""Between an array and vectors: loads that widen, stores that round, parts of a vector at an edge, prefetches."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from backends.cpu.simd.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    VF32,
    VI32,
    broadcast,
    call,
    f32x16,
    i32x16,
    round_to_bf16,
    splat,
)


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


@intrinsic
def store_i8(typing, array, index, vector):
    """Write the lowest byte of each lane of an i32x16 to an int8 array."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type, _ = signature.args
        lanes = ir.VectorType(I8, LANES)
        place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], lanes)
        builder.store(builder.trunc(arguments[2], lanes), place).align = 1
        return context.get_dummy_value()

    return types.void(array, index, vector), codegen


def prefetching(to_write: bool, level: int):
    """An intrinsic that asks for a cache line. `to_write` takes it away from other cores as well."""
    how = [I32(int(to_write)), I32(4 - level), I32(1)]  # the last: data, not instructions

    @intrinsic
    def prefetch(typing, array, index):
        def codegen(context, builder, signature, arguments):
            array_type, index_type = signature.args
            place = pointer(context, builder, array_type, arguments[0], index_type, arguments[1], I8)
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, *how])
            return context.get_dummy_value()

        return types.void(array, index), codegen

    return prefetch


# Ask for the 64 bytes at array[index], to come into the second-level cache (those that will be written: the first).
# Nothing waits; any address will do.
prefetch, prefetch_to_write = prefetching(False, 2), prefetching(True, 1)


@intrinsic
def before_line(typing, array):
    """How many of an array's numbers, of 4 bytes, lie before the first one that begins a cache line."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        to_go = builder.and_(builder.neg(builder.ptrtoint(data, I64)), I64(63))
        return builder.lshr(to_go, I64(2))

    return types.intp(array), codegen
