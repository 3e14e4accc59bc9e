"""The residual add."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import blocks_for, empty, launch, plain


def add(backend, x_TD, y_TD):
    if x_TD.shape != y_TD.shape:
        return NotImplemented
    out_TD = empty(backend, x_TD.shape)
    if out_TD.size:
        arguments = plain(backend, x_TD), plain(backend, y_TD), out_TD, np.int64(out_TD.size)
        launch(backend, "add_kernel", blocks_for(out_TD.size), 256, arguments)
    return out_TD
