"""Rows of a table: embedding, and the rows whose logits are wanted."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import as_matrix, empty, launch, threads_for


def take_rows(backend, table_ND, row_T):
    """row_T   on the host, where it is checked, or on the device, where nobody waits for it"""
    (N, D), table = table_ND.shape, as_matrix(backend, table_ND)
    if table is None or D == 0:
        return NotImplemented
    if isinstance(row_T, np.ndarray) and row_T.size and not 0 <= row_T.min() <= row_T.max() < N:
        raise IndexError(f"rows {row_T.min()} to {row_T.max()} of a table of {N}")
    row_T = backend.xp.ascontiguousarray(backend.xp.asarray(row_T), np.int64)
    out_TD = empty(backend, (len(row_T), D))
    if len(row_T):
        arguments = *table, row_T, out_TD, np.int32(N), np.int32(D)
        launch(backend, "take_rows_kernel", len(row_T), threads_for(D, 256), arguments)
    return out_TD
