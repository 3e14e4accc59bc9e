"""A bfloat16 matrix in 12 bits a number, and not a bit of it lost: decoding reads a quarter less.

    bfloat16    upper byte: sign 1, exponent 7      lower byte: exponent 1, mantissa 7
    packed      which of 16 upper bytes: 4 bits     lower byte as it is

A trained matrix does not use what eight bits of exponent offer. Its numbers scatter around zero, more or less normally
distributed: of ten thousand, one or two are smaller than their row's largest by more than 2^15. All others share eight
upper bytes, with their signs sixteen. Each row has a `base`, the smallest of its eight; a block of 128 columns with a
number that does not fit is kept as it was, aside.

    upper byte = (code & 8) << 4 | base + (code & 7)

How it lies in memory: row by row, a row in blocks of 128 columns, a block in 192 bytes.

    blocks_ONB    64 bytes with the codes, of the first 64 columns in their lower halves, then 128 lower bytes
    base_O        the row's base
    start_O1      the blocks of row o that were kept are start_O1[o] to start_O1[o + 1] - 1 of
    place_R       which block of its row it is
    raw_RC        its 128 numbers, bfloat16

Within 64 columns the order of bytes is 0-7 32-39 8-15 40-47 16-23 48-55 24-31 56-63: one instruction, which interleaves
the bytes of two registers within each quarter of them, then makes 32 neighbours of upper and lower bytes.

Who has seen this before: DFloat11 (Zhang et al. 2025, arXiv 2504.11651) codes the exponents of a whole model by
Huffman, 2.6 bits each, for GPUs. Four bits are more, but a processor looks 64 of them up at once.
"""

from __future__ import annotations

import functools
import math

import ml_dtypes
import numpy as np

BLOCK = 128  # columns
CODES, BYTES = BLOCK // 2, BLOCK // 2 + BLOCK  # of a block
SPAN = 8  # upper bytes that fit, signs not counted
PIECE = 1 << 18  # numbers unpacked at a time
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Packed:
    """A bfloat16 matrix in 12 bits a number that looks like an array: `shape`, `nbytes`, `[rows]` and `astype`.

    shape         (O, I); I is a multiple of 128
    blocks_ONB    uint8, and base_O, start_O1, place_R, raw_RC: see above

    >>> weight = pack(np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128).astype(BFLOAT16))
    >>> weight, weight.nbytes, weight[[1]][0, :3]
    (<bf16 in 12 bits (2, 128)>, 398, array([0.00393677, 0.01177979, 0.01965332], dtype=float32))
    """

    ndim = 2
    dtype = BFLOAT16  # of its numbers

    def __init__(self, shape: tuple[int, int], blocks_ONB, base_O, start_O1, place_R, raw_RC):
        self.shape = shape[0], shape[1]
        self.blocks_ONB, self.base_O, self.start_O1 = blocks_ONB, base_O, start_O1
        self.place_R, self.raw_RC = place_R, raw_RC
        for array in self.parts:
            array.flags.writeable = False  # kernels are compiled for this, too: one version of each is enough

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        return self.blocks_ONB, self.base_O, self.start_O1, self.place_R, self.raw_RC

    @functools.cached_property
    def as_kernels_take(self) -> tuple[np.ndarray, ...]:
        """The same, with the numbers kept as they were in pairs."""
        return *self.parts[:-1], self.raw_RC.view(np.int32)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self):
        return f"<bf16 in 12 bits {self.shape}>"

    def __getitem__(self, row_N) -> np.ndarray:
        """Some rows, as float32: how an embedding is looked up."""
        row_N = np.asarray(row_N)
        if row_N.ndim != 1 or row_N.dtype.kind not in "iu":
            raise TypeError("a packed matrix gives whole rows, by an array of row numbers")
        return self.rows(np.arange(len(self))[row_N]).astype(
            np.float32
        )  # also negative ones, and none that is not there

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        """Some rows as they are, in bfloat16."""
        out_NnC = unpacked(self.blocks_ONB[row_N], self.base_O[row_N])
        for n, o in enumerate(row_N):
            kept = slice(self.start_O1[o], self.start_O1[o + 1])
            out_NnC[n, self.place_R[kept]] = self.raw_RC[kept]
        return out_NnC.reshape(len(row_N), self.shape[1])

    def astype(self, dtype, copy: bool = True) -> np.ndarray:
        """The whole matrix in a floating point type. Definitions use this, every time anew; kernels never do."""
        out_OI = np.empty(self.shape, dtype)
        rows = max(1, PIECE // self.shape[1])
        for first in range(0, len(self), rows):
            out_OI[first : first + rows] = self.rows(np.arange(first, min(first + rows, len(self))))
        return out_OI


def unpacked(blocks_NnB: np.ndarray, base_N: np.ndarray) -> np.ndarray:
    """The numbers that rows of blocks mean, as bfloat16 [N, n, 128]."""
    codes, lower = blocks_NnB[..., :CODES], blocks_NnB[..., CODES:].astype(np.uint16)
    code = np.concatenate((codes & 15, codes >> 4), axis=-1)
    upper = (code & 8) << 4 | base_N[:, None, None] + (code & 7)
    return by_column(upper.astype(np.uint16) << 8 | lower).view(BFLOAT16)


def by_column(stored_NnC: np.ndarray) -> np.ndarray:
    """Numbers in the order of their columns, from that in which their bytes are stored."""
    return stored_NnC.reshape(*stored_NnC.shape[:-1], 2, 4, 2, 8).swapaxes(-3, -2).reshape(stored_NnC.shape)


def as_stored(by_column_NnC: np.ndarray) -> np.ndarray:
    """The other way round."""
    return by_column_NnC.reshape(*by_column_NnC.shape[:-1], 2, 2, 4, 8).swapaxes(-3, -2).reshape(by_column_NnC.shape)


def can_pack(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of that shape has whole blocks."""
    return len(shape) == 2 and shape[0] > 0 and shape[1] > 0 and shape[1] % BLOCK == 0


def pack(weight_OI: np.ndarray) -> Packed:
    """The matrix in 12 bits a number: the definition; `backends/cpu/packing.py` is the fast one.

    >>> weight = np.float32(2.0 ** np.arange(-100, 28)).reshape(1, 128).astype(BFLOAT16)      # too far apart
    >>> packed = pack(weight); len(packed.place_R), bool((packed[[0]] == weight).all())
    (1, True)
    """
    O, I = weight_OI.shape  # noqa: E741
    bits_OnC = np.ascontiguousarray(weight_OI).view(np.uint16).reshape(O, I // BLOCK, BLOCK)
    upper_OnC = (bits_OnC >> 8 & 127).astype(np.int64)
    base_O = np.array([best_base(row) for row in upper_OnC], np.uint8)
    above_OnC = upper_OnC - base_O[:, None, None].astype(np.int64)
    strange_On = ((above_OnC < 0) | (above_OnC >= SPAN)).any(axis=-1)
    code_OnC = as_stored(bits_OnC >> 12 & 8 | above_OnC & 7)
    blocks_ONB = np.empty((O, I // BLOCK, BYTES), np.uint8)
    blocks_ONB[..., CODES:] = as_stored(bits_OnC & 255)
    blocks_ONB[..., :CODES] = code_OnC[..., :64] | code_OnC[..., 64:] << 4
    blocks_ONB[strange_On] = 0
    start_O1 = np.concatenate([[0], strange_On.sum(axis=1).cumsum()]).astype(np.int32)
    place_R = np.nonzero(strange_On)[1].astype(np.int32)
    return Packed((O, I), blocks_ONB, base_O, start_O1, place_R, bits_OnC[strange_On].view(BFLOAT16))


def best_base(upper: np.ndarray) -> int:
    """The base with which most of these upper bytes fit, and the highest of those.

    >>> best_base(np.array([60, 61, 58, 20]))
    58
    """
    counts = np.bincount(upper.reshape(-1), minlength=128)
    fits = np.convolve(counts, np.ones(SPAN, np.int64))[SPAN - 1 : 128]  # bases 0 to 120
    return len(fits) - 1 - int(fits[::-1].argmax())
