"""The way back through `take_rows`: each token adds its gradient to the row that it took.

Bytes that must move: the gradients once, and a zero for each number of the table. Rows are added one after the other,
as two tokens may have taken the same one. 4096 tokens of 192 numbers: NumPy 7 ms, this 0.3.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.rows import F32, plain
from backends.cpu.simd import load_part, store_part


def take_rows_gradient(backend, d_out_TD, table_ND, row_T):
    d_table_ND = np.zeros(table_ND.shape, F32)
    add_rows(plain(d_out_TD), np.asarray(row_T), d_table_ND)
    return d_table_ND, None


@kernel
def add_rows(x_TD, row_T, out_ND):
    D = x_TD.shape[1]
    for t in range(len(row_T)):
        n = row_T[t]
        for d in range(0, D, 16):
            store_part(out_ND, (n, d), load_part(out_ND, (n, d), D - d) + load_part(x_TD, (t, d), D - d), D - d)
