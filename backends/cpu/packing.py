"""bfloat16 into 12 bits a number, as `backends/packed.py` defines it; `packed_vector.py` undoes it.

0.8 ns a weight and core, most of them for counting upper bytes: the 0.5B's 494 M weights take 0.2 s on two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backends.cpu.compiling import allocating, kernel, within
from backends.cpu.simd import any_bits, constant_i32, fill_i32, load, lower_bytes, store
from backends.packed import BLOCK, BYTES, CODES, SPAN, Packed

four, eight = constant_i32(4), constant_i32(8)
byte, without_sign, sign = constant_i32(0x00FF_00FF), constant_i32(0x007F_007F), constant_i32(0x0080_0080)
fits, does_not = constant_i32(0x0007_0007), constant_i32(0xFFF8_FFF8 - (1 << 32))


# Lists of counts that take turns: a row has few different upper bytes, and one that comes again would wait for its last
# count to be written. 1.27 ns a weight with one list, 0.68 with eight.
TALLIES = 8


class Packing:
    """A matrix that is being packed, some rows at a time, in any order and by several threads.

    room   called as room(shape, dtype) for the memory in which it will lie

    >>> import ml_dtypes; weight = np.arange(256, dtype=ml_dtypes.bfloat16).reshape(2, 128)
    >>> packing = Packing(weight.shape)
    >>> packing.add(1, weight[1:]); packing.add(0, weight[:1])
    >>> packing.end(), bool((packing.end().astype(weight.dtype) == weight).all())
    (<bf16 in 12 bits (2, 128)>, True)
    """

    def __init__(self, shape: tuple[int, ...], room: Callable = np.empty):
        O, I = shape  # noqa: E741
        self.shape = O, I
        self.blocks_ONB = room((O, I // BLOCK, BYTES), np.dtype(np.uint8))
        self.base_O, self.strange_On = np.empty(O, np.uint8), np.empty((O, I // BLOCK), np.bool_)
        self.kept: dict[int, np.ndarray] = {}

    def add(self, first: int, rows_NI: np.ndarray) -> None:
        """Rows from the first on."""
        some = slice(first, first + len(rows_NI))
        best_bases(rows_NI.view(np.uint16), self.base_O[some])
        pack_rows(rows_NI.view(np.int32), self.base_O[some], self.strange_On[some], self.blocks_ONB[some])
        self.kept[first] = rows_NI.reshape(len(rows_NI), -1, BLOCK)[self.strange_On[some]]

    def end(self) -> Packed:
        """The matrix, when all rows are there."""
        start_O1 = np.concatenate([[0], self.strange_On.sum(axis=1).cumsum()]).astype(np.int32)
        place_R = np.nonzero(self.strange_On)[1].astype(np.int32)
        raw_RC = np.concatenate([self.kept[first] for first in sorted(self.kept)])
        return Packed(self.shape, self.blocks_ONB, self.base_O, start_O1, place_R, raw_RC)


@kernel
@allocating
def best_bases(bits_OI, base_O):
    """For each row the base with which most upper bytes fit, and the highest of those."""
    tallies, counts = np.empty((TALLIES, 128), np.int32), np.empty(128, np.int32)
    for o in range(len(bits_OI)):
        tallies[:] = 0
        for i in range(0, bits_OI.shape[1], TALLIES):
            for n in range(TALLIES):
                tallies[n, bits_OI[o, i + n] >> 8 & 127] += 1
        for upper in range(128):
            counts[upper] = tallies[:, upper].sum()
        fit = most = counts[128 - SPAN :].sum()
        base_O[o] = 128 - SPAN
        for base in range(127 - SPAN, -1, -1):
            fit += counts[base] - counts[base + SPAN]
            if fit > most:
                most, base_O[o] = fit, base


@within
def code_of(pairs, base):
    """Codes of a pair of numbers, one above another, and what is left of their upper bytes if they do not fit."""
    upper = (pairs >> eight()) & byte()
    above = (upper & without_sign()) - base
    return (above & fits()) | ((upper & sign()) >> four()), above & does_not()


@kernel
def pack_rows(pairs_OJ, base_O, strange_On, blocks_ONB):
    """All blocks, and which of them hold a number that does not fit."""
    for o in range(len(blocks_ONB)):
        base = fill_i32(np.int32(base_O[o]) * np.int32(0x0001_0001))
        for n in range(blocks_ONB.shape[1]):
            j = n * 64
            a, b = load(pairs_OJ, (o, j)), load(pairs_OJ, (o, j + 16))
            c, d = load(pairs_OJ, (o, j + 32)), load(pairs_OJ, (o, j + 48))
            store(blocks_ONB, (o, n, CODES), lower_bytes(a, b))
            store(blocks_ONB, (o, n, CODES + 64), lower_bytes(c, d))
            (a, no_a), (b, no_b), (c, no_c), (d, no_d) = (
                code_of(a, base), code_of(b, base), code_of(c, base), code_of(d, base)
            )  # fmt: skip
            store(blocks_ONB, (o, n, 0), lower_bytes(a | (c << four()), b | (d << four())))
            strange_On[o, n] = any_bits((no_a | no_b) | (no_c | no_d))
            if strange_On[o, n]:
                blocks_ONB[o, n] = 0
