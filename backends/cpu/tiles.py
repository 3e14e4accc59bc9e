"""Tiles: a block of sums that stay in registers while a loop passes over what is summed.

    total = tile(16, zeros())                                # 16 rows of 16 lanes: 16 of AVX-512's 32 registers
    for k in range(K):
        total = outer_f32(total, load(x, (k, 0)), w, (n, k))     # total[r] += x[k, :] * w[n + r, k]

That loop is why a matrix product can run at the speed of the arithmetic: each step loads 16 + 16 numbers and does 256
multiply-adds with them. A tile is a tuple of vectors; the compiler keeps each in a register of its own.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from backends.cpu.compiling import inner
from backends.cpu.simd.lanes import PRODUCTS
from backends.cpu.simd.memory import KINDS, pointer, prefetch_to_write
from backends.cpu.simd.vectors import F32, I64, LANES, VF32, VI32, VI64, broadcast, call, f32x16


@intrinsic(prefer_literal=True)
def tile(typing, count, vector):
    """A tuple of so many copies of a vector; the count is written as a number, or as a tuple that has as many items."""
    rows = count.literal_value if isinstance(count, types.IntegerLiteral) else getattr(count, "count", None)
    if rows is None:
        return None

    def codegen(context, builder, signature, arguments):
        return cgutils.pack_array(builder, [arguments[1]] * rows)

    return types.UniTuple(vector, rows)(count, vector), codegen


def column(context, builder, count, array_type, array, index_type, index):
    """`count` neighbours of array[index], as scalars: along the axis that the index leaves out, else along the first.

    (n, k) of a 2-D array:   array[n, k], array[n + 1, k], ...
    (b, q) of a 3-D array:   array[b, q, 0], array[b, q, 1], ...
    """
    element, _, widen = KINDS[array_type.dtype]
    first, *rest = (
        context.cast(builder, number, kind, types.intp)
        for number, kind in zip(cgutils.unpack_tuple(builder, index), index_type.types)
    )
    kind = types.UniTuple(types.intp, array_type.ndim)
    for r in range(count):
        whole = array_type.ndim == 1 + len(rest)
        at = cgutils.pack_array(builder, [builder.add(first, I64(r)), *rest] if whole else [first, *rest, I64(r)])
        number = builder.load(pointer(context, builder, array_type, array, kind, at, element))
        number.align = array_type.dtype.bitwidth // 8
        yield widen(builder, number)


def outer(name: str):
    """An intrinsic that adds the outer product of a column and a vector to a tile: a register for each of the rows.

        for r, total in enumerate(tile):
            tile[r] = total + vector * column[r]          with the product of that name

    Every vector that is loaded is used once for each row, and every number of the column once for each lane.
    """
    product, _ = PRODUCTS[name]

    @intrinsic
    def add_outer(typing, tile, vector, array, index):
        def codegen(context, builder, signature, arguments):
            tile, vector, array, index = arguments
            _, _, array_type, index_type = signature.args
            totals = cgutils.unpack_tuple(builder, tile)
            numbers = column(context, builder, len(totals), array_type, array, index_type, index)
            rows = [
                product(builder, total, vector, broadcast(builder, number, vector.type))
                for total, number in zip(totals, numbers)
            ]
            return cgutils.pack_array(builder, rows)

        return tile(tile, vector, array, index), codegen

    return add_outer


outer_f32, outer_bf16, outer_i16, outer_u8_i8 = (outer(name) for name in PRODUCTS)


@intrinsic
def outer_bf16_twice(typing, tile, vector, array, index):
    """As `outer_bf16` for array[index] and its right neighbour: the even lanes take the one, the odd lanes the other.

    Both come as one number of 64 bits, so a vector of 8 values, each for two columns, fills all 16 lanes.
    """

    def codegen(context, builder, signature, arguments):
        tile, vector, array, index = arguments
        _, _, array_type, index_type = signature.args
        totals, product = cgutils.unpack_tuple(builder, tile), PRODUCTS["bf16"][0]
        row, col = (
            context.cast(builder, number, kind, types.intp)
            for number, kind in zip(cgutils.unpack_tuple(builder, index), index_type.types)
        )
        kind, rows = types.UniTuple(types.intp, 2), []
        for r, total in enumerate(totals):
            at = cgutils.pack_array(builder, [builder.add(row, I64(r)), col])
            both = builder.load(pointer(context, builder, array_type, array, kind, at, I64))
            both.align = 4
            rows.append(product(builder, total, vector, builder.bitcast(broadcast(builder, both, VI64), VI32)))
        return cgutils.pack_array(builder, rows)

    return tile(tile, vector, array, index), codegen


@intrinsic(prefer_literal=True)
def load_column(typing, count, array, index):
    """A tile of so many rows: each has its number of the column (see `column`) in every lane."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    of = KINDS[array.dtype][1]

    def codegen(context, builder, signature, arguments):
        _, array_type, index_type = signature.args
        numbers = column(context, builder, count.literal_value, array_type, arguments[1], index_type, arguments[2])
        return cgutils.pack_array(builder, [broadcast(builder, number, of.llvm) for number in numbers])

    return types.UniTuple(of, count.literal_value)(count, array, index), codegen


@intrinsic
def add_scaled(typing, total, whole, scale, array, index):
    """total[r] + whole[r] * (scale * column[r]): whole numbers back to what they mean, and added up."""

    def codegen(context, builder, signature, arguments):
        total, whole, scale, array, index = arguments
        totals, wholes = cgutils.unpack_tuple(builder, total), cgutils.unpack_tuple(builder, whole)
        _, _, _, array_type, index_type = signature.args
        numbers = column(context, builder, len(totals), array_type, array, index_type, index)
        rows = []
        for so_far, more, number in zip(totals, wholes, numbers):
            both = builder.fmul(scale, broadcast(builder, number, VF32))
            rows.append(call(builder, "llvm.fma.v16f32", VF32, [builder.sitofp(more, VF32), both, so_far]))
        return cgutils.pack_array(builder, rows)

    return total(total, whole, scale, array, index), codegen


def tile_rows(context, builder, count, array_type, array, index_type, index, lanes):
    """The addresses of array[n, k : k + 16], array[n + 1, k : k + 16], ..."""
    row, col = (
        context.cast(builder, number, kind, types.intp)
        for number, kind in zip(cgutils.unpack_tuple(builder, index), index_type.types)
    )
    kind = types.UniTuple(types.intp, 2)
    for r in range(count):
        at = cgutils.pack_array(builder, [builder.add(row, I64(r)), col])
        yield pointer(context, builder, array_type, array, kind, at, lanes)


@intrinsic
def load_tile(typing, array, index):
    """16 rows of 16 numbers: array[n : n + 16, k : k + 16] as a tile."""
    element, of, widen = KINDS[array.dtype]

    def codegen(context, builder, signature, arguments):
        array_type, index_type = signature.args
        lanes, rows = ir.VectorType(element, LANES), []
        for place in tile_rows(context, builder, LANES, array_type, arguments[0], index_type, arguments[1], lanes):
            loaded = builder.load(place)
            loaded.align = array.dtype.bitwidth // 8
            rows.append(widen(builder, loaded))
        return cgutils.pack_array(builder, rows)

    return types.UniTuple(of, LANES)(array, index), codegen


@intrinsic
def load_rows(typing, rows, array, index):
    """As `load_tile`, with as many rows as the tuple `rows` has items; of float32."""

    def codegen(context, builder, signature, arguments):
        _, array_type, index_type = signature.args
        _, array, index = arguments
        loaded = []
        for place in tile_rows(context, builder, rows.count, array_type, array, index_type, index, VF32):
            loaded.append(builder.load(place))
            loaded[-1].align = 4
        return cgutils.pack_array(builder, loaded)

    return types.UniTuple(f32x16, rows.count)(rows, array, index), codegen


@intrinsic
def store_tile(typing, array, index, tile):
    """array[n, k : k + 16] = tile[0], array[n + 1, k : k + 16] = tile[1], ..."""

    def codegen(context, builder, signature, arguments):
        array_type, index_type, tile_type = signature.args
        rows, lanes = cgutils.unpack_tuple(builder, arguments[2]), tile_type.dtype.llvm
        places = tile_rows(context, builder, len(rows), array_type, arguments[0], index_type, arguments[1], lanes)
        for row, place in zip(rows, places):
            builder.store(row, place).align = 4
        return context.get_dummy_value()

    return types.void(array, index, tile), codegen


@intrinsic
def add_shrunk(typing, tile, array, index, shrink):
    """tile[r] + array[n + r, k : k + 16] * shrink[r], for each row r."""

    def codegen(context, builder, signature, arguments):
        _, array_type, index_type, shrink_type = signature.args
        rows = cgutils.unpack_tuple(builder, arguments[0])
        places = tile_rows(context, builder, len(rows), array_type, arguments[1], index_type, arguments[2], VF32)
        sums = []
        for r, (row, place) in enumerate(zip(rows, places)):
            number = pointer(context, builder, shrink_type, arguments[3], types.intp, I64(r), F32)
            factor, so_far = broadcast(builder, builder.load(number), VF32), builder.load(place)
            so_far.align = 4
            sums.append(call(builder, "llvm.fma.v16f32", VF32, [so_far, factor, row]))
        return cgutils.pack_array(builder, sums)

    return tile(tile, array, index, shrink), codegen


@intrinsic
def transposed(typing, rows):
    """The columns of a 16 x 16 matrix whose rows are a tile. Four rounds, each of which swaps blocks half as large."""

    def codegen(context, builder, signature, arguments):
        vectors = cgutils.unpack_tuple(builder, arguments[0])
        block = LANES // 2
        while block:
            swapped = list(vectors)
            for n in range(LANES):
                if not n & block:
                    upper, lower = vectors[n], vectors[n + block]
                    lanes = range(LANES)
                    keep = [lane if not lane & block else lane - block + LANES for lane in lanes]
                    take = [lane + block if not lane & block else lane + LANES for lane in lanes]
                    swapped[n] = builder.shuffle_vector(upper, lower, ir.Constant(VI32, keep))
                    swapped[n + block] = builder.shuffle_vector(upper, lower, ir.Constant(VI32, take))
            vectors, block = swapped, block // 2
        return cgutils.pack_array(builder, vectors)

    return rows(rows), codegen


@inner
def send_for_sums(y_TO, t, tokens, o, rows):
    """Ask for y_TO[t : t + tokens, o : o + rows], which a tile will write when it is done.

    Written without, each line of a large array that is new to this core is waited for, one after another: a fourth of
    the time of a product with 896 columns. Rows of y begin anywhere, so one line more may be touched.
    """
    for n in range(t, min(t + tokens, len(y_TO))):
        for k in range(0, rows + LANES, LANES):
            prefetch_to_write(y_TO, (n, o + k))
