"""A sketch of a matrix: 4 bits a weight, and a bound on what they miss. Enough to know which rows cannot win.

    w[o] . x   <   sum over g of  step[o, g] * sum over i in g of (value[o, i] - 8 - dither[i]) * x[i]
                +  Z * sqrt( sum over g of  step[o, g]^2 * |x in g|^2 / 12 )
                +  SLACK * norm[o] * |x|

Who looks for the largest of 150,000 products, as greedy decoding does, need not compute them all: a row whose bound is
below a product that is known has lost. The bounds are read from half of int8's bytes, or a quarter of bfloat16's; then
a few dozen rows are computed as ever.

Why such a bound holds. Rounding a weight to a whole number of steps hides up to half a step. Were these errors of one
sign, a row could be far off: by half a step in each of 896 columns. But before rounding, column i is moved by
`dither[i]`, a number drawn once from (-1/2, 1/2), and afterwards moved back. Then the errors of a row are independent
of each other, of the weights and of x, and spread evenly over a step, whatever the weights are (Schuchman 1964). So
they cancel: weighted with x, their sum has the standard deviation of the second line without Z, and exceeds Z times of
it with a probability of less than exp(-Z^2 / 2): 3e-18 for one row, 4e-13 for all 152,000 (Hoeffding 1963; a number
spread evenly is sub-Gaussian). The third line is for floating point, and for kernels that round x.

How it lies in memory: as an int4 matrix (`backends/quantised.py`), with other scales: step = the group's largest weight
/ 7, so that a dithered weight still fits into 16 numbers.

Who has seen this before: bounds for parts of the vocabulary are as old as large softmaxes; CSV-Decode (Liu et al. 2025,
arXiv 2511.21702) takes clusters of rows, which have to be near each other for that. Dither asks nothing of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backends.quantised import GROUP, ROWS, Quantised, empty, lay_out, next_bfloat16

Z = 9.0
SLACK = 1e-4  # of norm * |x|: some hundred roundings of float32, or a token in 16 bits
LEVELS = 7
LEAST, LONGEST = 1e-16, 1e15  # step, and row: the bound squares both in float32
SEED = 1964


class Sketch:
    """Made by `sketch_of`.

    rough      the values and steps, an int4 matrix
    dither_I   what was added to each column, in steps; filled up to whole groups
    norm_PR    |w| of each row, 16 rows to a tile; 0 for rows that are not there

    >>> rng = np.random.default_rng(0)
    >>> weight_OI, x_I = rng.standard_normal((40, 64), np.float32), rng.standard_normal(64, np.float32)
    >>> sketch = sketch_of(weight_OI)
    >>> sketch, bool((weight_OI @ x_I < sketch.bounds(x_I)).all())
    (<sketch (40, 64)>, True)
    """

    dtype = "sketch"
    ndim = 2

    def __init__(self, rough: Quantised, dither_I: np.ndarray, norm_PR: np.ndarray):
        self.rough, self.dither_I, self.norm_PR = rough, dither_I, norm_PR
        self.shape = rough.shape

    @property
    def nbytes(self) -> int:
        return self.rough.nbytes + self.norm_PR.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self):
        return f"<sketch {self.shape}>"

    def tiles(self, start: int, stop: int) -> Sketch:
        """Rows start to stop as a view; both begin a tile, but for a stop behind the last row."""
        norm_PR = self.norm_PR[start // ROWS : -(-stop // ROWS)]
        return Sketch(self.rough.tiles(start, min(stop, len(self))), self.dither_I, norm_PR)

    def check(self) -> None:
        """ValueError if the matrix was not all numbers, or has rows too long for a bound."""
        if not self.norm_PR.max(initial=0) < LONGEST:  # also false for NaN
            raise ValueError(f"the matrix has rows longer than {LONGEST:g}, or what is no number")

    @property
    def step_OG(self) -> np.ndarray:
        steps_PRG = self.rough.scales.astype(np.float32).swapaxes(1, 2)
        return steps_PRG.reshape(-1, steps_PRG.shape[2])[: len(self)]

    def bounds(self, x_I: np.ndarray) -> np.ndarray:
        """What no product w[o] . x reaches: the formula above, in NumPy."""
        O, I = self.shape  # noqa: E741
        step_OG = self.step_OG
        x_Gi = np.zeros((step_OG.shape[1], GROUP), np.float32)
        x_Gi.reshape(-1)[:I] = x_I
        moved_G = (self.dither_I.reshape(-1, GROUP) * x_Gi).sum(axis=1)
        middle_O = self.rough.astype(np.float32) @ x_I - step_OG @ moved_G
        spread_O = np.sqrt(step_OG**2 @ ((x_Gi**2).sum(axis=1) / 12))
        return middle_O + Z * spread_O + SLACK * self.norm_PR.reshape(-1)[:O] * np.linalg.norm(x_I)


def sketch_of(weight_OI: np.ndarray) -> Sketch:
    """A sketch of that matrix: the definition; `backends/cpu/sketching.py` is the fast one.

    Errors: ValueError for NaN, infinity, or a number so large that products could become infinite.
    """
    sketch = empty_sketch(weight_OI.shape)
    add_rows(sketch, 0, np.asarray(weight_OI, np.float32))
    sketch.check()
    return sketch


def empty_sketch(shape: tuple[int, int], room: Callable = np.empty) -> Sketch:
    """One that `add_rows` has to fill, in memory from `room(shape, dtype)`."""
    rough = empty(4, shape, room)
    dither_I = dither(rough.scales.shape[1] * GROUP)
    return Sketch(rough, dither_I, np.empty((len(rough.values), ROWS), np.float32))


def dither(columns: int) -> np.ndarray:
    """Numbers from (-1/2, 1/2), the same ones every time."""
    return np.random.default_rng(SEED).random(columns, np.float32) - np.float32(0.5)


def whole_tiles(sketch: Sketch, rows_NI: np.ndarray) -> np.ndarray:
    """Rows in float32, filled up with zeros to whole tiles of whole groups."""
    (N, I), rows, columns = rows_NI.shape, -(-len(rows_NI) // ROWS) * ROWS, len(sketch.dither_I)  # noqa: E741
    if (rows, columns) == (N, I):
        return np.ascontiguousarray(rows_NI, np.float32)
    filled_NI = np.zeros((rows, columns), np.float32)
    filled_NI[:N, :I] = rows_NI
    return filled_NI


def add_rows(sketch: Sketch, first: int, rows_NI: np.ndarray) -> None:
    """Draw rows from the first on, which begins a tile. The next call goes on behind whole tiles."""
    rows_NI = whole_tiles(sketch, rows_NI)
    N, some = len(rows_NI), sketch.tiles(first, first + len(rows_NI))
    groups_NGi = rows_NI.reshape(N, -1, GROUP)
    step_NG = next_bfloat16(np.maximum(np.abs(groups_NGi).max(axis=-1) / np.float32(LEVELS), np.float32(LEAST)))
    value_NGi = groups_NGi / step_NG.astype(np.float32)[..., None]
    value_NGi += some.dither_I.reshape(-1, GROUP)
    lay_out(np.rint(value_NGi) + 8, step_NG, some.rough)
    some.norm_PR[...] = np.linalg.norm(rows_NI, axis=1).reshape(-1, ROWS)
