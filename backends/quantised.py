"""Weights in 8 or 4 bits: what the numbers mean, and what is lost.

    weight[o, i] = scale[o, i // 32] * (value[o, i] - zero)        zero = 128 (int8) or 8 (int4)

Each row is cut into groups of 32 columns, and each group has one scale, a bfloat16. The value is a whole number, 1 to
255 in int8 and 0 to 15 in int4, stored without a sign because the processor's dot products want one operand so. A
weight then costs 8.5 or 4.5 bits, and decoding, which does little but read weights, gets that much faster.

What is lost: int8's scale is the group's largest weight / 127, so that a weight is off by at most half a scale. int4
has one number more below zero than above, so its scale may be negative: of the two scales that put the largest weight
on -8 or on 7 the better one is taken, moved to where the squared error of the numbers chosen is least (`fitted`).
Measured on normally distributed weights, root mean square error over root mean square weight: 0.55 % and 8.3 % (8.6 %
with the largest weight always on -8, as Q4_0 has it). Norms and biases are never quantised.

How it lies in memory: 16 rows side by side, so that one 64-byte vector holds the next columns of 16 rows, and every row
adds up its own sum in its own lane; no vector is ever summed across. Rows are filled up to a multiple of 16, columns to
one of 32, with zeros.

    int8   values_PQRB   B = 4 bytes:  columns 4q, 4q+1, 4q+2, 4q+3                   of row 16p + r
    int4   values_PQRB   B = 4 bytes:  columns 8q+b in the low half, 8q+4+b in the high half, b = 0 .. 3
    both   scales_PGR    one scale a group of 32 columns

Source: the idea of groups and of int4's signed scale is that of Q8_0 and Q4_0 in ggml; the layout is this project's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

GROUP = 32  # columns that share a scale
ROWS = 16  # rows side by side: one to each lane of a vector
BITS = {"int8": 8, "int4": 4}
PIECE = 1 << 18  # numbers widened at a time: 1 MB of float32 stays in the core's cache
LARGEST = 1e38  # float32 ends at 3.4e38, and fitting may move a scale up


class Quantised:
    """A matrix in 8 or 4 bits that looks like an array: `shape`, `nbytes`, `[rows]` and `astype`.

    bits     8 or 4
    shape    (O, I), without what rows and columns are filled up with
    values   values_PQRB, uint8
    scales   scales_PGR, bfloat16

    >>> weight = quantise(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), 8)
    >>> weight, weight.astype(np.float32)[0, :3].round(2)
    (<int8 (2, 32)>, array([-1.  , -0.97, -0.94], dtype=float32))
    """

    ndim = 2

    def __init__(self, bits: int, shape: tuple[int, int], values: np.ndarray, scales: np.ndarray):
        self.bits, self.shape, self.values, self.scales = bits, (shape[0], shape[1]), values, scales
        expected = stored_shapes(bits, self.shape)
        if (values.shape, scales.shape) != expected:
            raise ValueError(f"values and scales are {values.shape}, {scales.shape}; {shape} needs {expected}")

    @functools.cached_property
    def lanes(self) -> tuple[np.ndarray, np.ndarray]:
        """The same bytes as kernels take them: values_PQr, the four bytes B as one number, and scales_PGr as uint16.

        Kernels are compiled for types, so these say what is inside: int32 is four int8, uint32 is eight int4.
        """
        return self.values.view(np.int32 if self.bits == 8 else np.uint32)[..., 0], self.scales.view(np.uint16)

    @property
    def dtype(self) -> str:
        return f"int{self.bits}"

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def tiles(self, start: int, stop: int) -> Quantised:
        """Rows start to stop as a view. `start` must be a multiple of 16, and `stop` one or the last row's end."""
        tiles = slice(start // ROWS, -(-stop // ROWS))
        return Quantised(self.bits, (stop - start, self.shape[1]), self.values[tiles], self.scales[tiles])

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self):
        return f"<{self.dtype} {self.shape}>"

    def __getitem__(self, row_N: np.ndarray) -> np.ndarray:
        """Some rows, as float32: how an embedding is looked up."""
        row_N = np.asarray(row_N)
        if row_N.ndim != 1 or row_N.dtype.kind not in "iu":
            raise TypeError("a quantised matrix gives whole rows, by an array of row numbers")
        if len(row_N) and not (-len(self) <= row_N.min() and row_N.max() < len(self)):
            raise IndexError(f"rows {row_N.min()} to {row_N.max()} of {len(self)}")
        row_N = np.where(row_N < 0, row_N + len(self), row_N)
        tile_N, lane_N = row_N // ROWS, row_N % ROWS
        return widened(self.values[tile_N, :, lane_N], self.scales[tile_N, :, lane_N], self.bits)[:, : self.shape[1]]

    def astype(self, dtype, copy: bool = True) -> np.ndarray:
        """The whole matrix in a floating point type. Definitions use this, every time anew; kernels never do."""
        out_OI = np.empty_like(self.values, shape=self.shape, dtype=dtype)  # where the values are, be that a device
        tiles = max(1, PIECE // (ROWS * self.shape[1])) if isinstance(self.values, np.ndarray) else len(self.values)
        for first in range(0, len(self.values), tiles):
            values_NQB = self.values[first : first + tiles].swapaxes(1, 2).reshape(-1, self.values.shape[1], 4)
            scales_NG = self.scales[first : first + tiles].swapaxes(1, 2).reshape(-1, self.scales.shape[1])
            rows = out_OI[first * ROWS : (first + tiles) * ROWS]
            rows[...] = widened(values_NQB, scales_NG, self.bits)[: len(rows), : self.shape[1]]
        return out_OI


def empty(bits: int, shape: tuple[int, int], room: Callable = np.empty) -> Quantised:
    """An uninitialised matrix, to be filled by `quantise(..., out=...)`, in memory from `room(shape, dtype)`."""
    values, scales = stored_shapes(bits, shape)
    return Quantised(bits, shape, room(values, np.dtype(np.uint8)), room(scales, np.dtype(ml_dtypes.bfloat16)))


def stored_shapes(bits: int, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of values_PQRB and scales_PGR of a matrix of that shape.

    >>> stored_shapes(4, (17, 40))
    ((2, 8, 16, 4), (2, 2, 16))
    """
    O, I = shape  # noqa: E741
    P, G = -(-O // ROWS), -(-I // GROUP)
    return (P, G * GROUP * bits // 32, ROWS, 4), (P, G, ROWS)


def widened(values_NQB: np.ndarray, scales_NG: np.ndarray, bits: int) -> np.ndarray:
    """The numbers that rows of stored values mean, as float32 [N, columns]."""
    N, G = scales_NG.shape
    if bits == 4:
        values_NQB = np.stack((values_NQB & 15, values_NQB >> 4), axis=2)  # [N, Q, 2, B]: columns 0..3, then 4..7
    signed_NGi = values_NQB.reshape(N, G, GROUP).astype(np.float32)
    signed_NGi -= 1 << bits - 1
    signed_NGi *= scales_NG.astype(np.float32)[:, :, None]
    return signed_NGi.reshape(N, G * GROUP)


def quantise(weight_OI: np.ndarray, bits: int, out: Quantised | None = None) -> Quantised:
    """The matrix in that many bits. Takes some ten times the matrix's bytes in memory: cut large ones into rows.

    out   where to put the result

    >>> quantise(np.float32([[8, -4, 0.4], [0, 0, 3]]), 4).astype(np.float32)
    array([[ 8., -4., -0.],
           [-0., -0.,  3.]], dtype=float32)

    Errors: ValueError for NaN, infinity, or a number so large that it could come out as infinity.
    """
    (O, I), (P, G, _) = weight_OI.shape, stored_shapes(bits, weight_OI.shape)[1]  # noqa: E741
    filled_OI = weight_OI
    if (P * ROWS, G * GROUP) != (O, I):
        filled_OI = np.zeros((P * ROWS, G * GROUP), np.float32)
        filled_OI[:O, :I] = weight_OI
    groups_OGi = np.asarray(filled_OI, np.float32).reshape(P * ROWS, G, GROUP)
    scale_OG = scales_of(groups_OGi, bits)

    value_OGi = divided(groups_OGi, scale_OG.astype(np.float32), bits)
    value_OGi += 1 << bits - 1
    out = empty(bits, (O, I)) if out is None else out
    lay_out(value_OGi, scale_OG, out)
    return out


def lay_out(value_OGi: np.ndarray, scale_OG: np.ndarray, out: Quantised) -> None:
    """Values without a sign, and their scales, to where they belong; rows and columns are filled up."""
    (P, Q, *_), G = out.values.shape, out.scales.shape[1]
    value_OGi = value_OGi.astype(np.uint8)
    if out.bits == 4:
        halves_OQ2B = value_OGi.reshape(P * ROWS, Q, 2, 4)
        value_OGi = halves_OQ2B[:, :, 0] | halves_OQ2B[:, :, 1] << 4
    out.values[...] = value_OGi.reshape(P, ROWS, Q, 4).swapaxes(1, 2)
    out.scales[...] = scale_OG.reshape(P, ROWS, G).swapaxes(1, 2)


def divided(groups_OGi: np.ndarray, scale_OG: np.ndarray, bits: int) -> np.ndarray:
    """The whole numbers nearest to the weights in units of their scales, from -8 to 7 or from -127 to 127."""
    value_OGi = groups_OGi / np.where(scale_OG == 0, np.float32(1), scale_OG)[..., None]
    np.rint(value_OGi, out=value_OGi)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    return np.clip(value_OGi, low, high, out=value_OGi)


def scales_of(groups_OGi: np.ndarray, bits: int) -> np.ndarray:
    """Each group's scale, a bfloat16; 0 for a group of zeros."""
    high_OG, low_OG = groups_OGi.max(axis=-1), groups_OGi.min(axis=-1)
    largest_OG = np.where(high_OG > -low_OG, high_OG, low_OG)
    if not np.isfinite(largest_OG).all():
        raise ValueError("the matrix has NaN or infinity in it")
    if np.abs(largest_OG).max(initial=0) > LARGEST:
        raise ValueError(f"the matrix has a number above {LARGEST:g} in it, too large to be quantised")
    if bits == 4:
        return fitted(groups_OGi, largest_OG).astype(ml_dtypes.bfloat16)
    return next_bfloat16(np.abs(largest_OG) / np.float32(127))  # then 127 scales are never less than the largest weight


def next_bfloat16(x: np.ndarray) -> np.ndarray:
    """The least bfloat16 that is not below x, for numbers from 0 on."""
    return ((x.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32).astype(ml_dtypes.bfloat16)


def fitted(groups_OGi: np.ndarray, largest_OG: np.ndarray) -> np.ndarray:
    """int4's scales: the largest weight on -8 or on 7, whichever leads to less error, and then fitted.

    For numbers q chosen, the scale with the least squared error is sum(w * q) / sum(q * q), and what it explains of the
    sum of squares is sum(w * q)^2 / sum(q * q). Computed in units of the first scale, where nothing can overflow.
    """
    best_OG = chosen_OG = np.zeros_like(largest_OG)
    for end in (-8, 7):
        scale_OG = largest_OG / np.float32(end)
        weight_OGi = groups_OGi / np.where(scale_OG == 0, np.float32(1), scale_OG)[..., None]
        q_OGi = np.clip(np.rint(weight_OGi), -8, 7)
        wq_OG = np.einsum("ogi,ogi->og", weight_OGi, q_OGi)
        fit_OG = wq_OG / np.maximum(np.einsum("ogi,ogi->og", q_OGi, q_OGi), np.float32(1))
        explained_OG = wq_OG * fit_OG * np.float32(1 / end**2)  # in units of the largest weight, the same for both
        chosen_OG = np.where(explained_OG > best_OG, scale_OG * fit_OG, chosen_OG)
        best_OG = np.maximum(best_OG, explained_OG)
    return chosen_OG
