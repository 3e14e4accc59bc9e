"""RoPE: a thread for each pair."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import blocks_for, empty, launch, plain


def rope(backend, x_TNK, cos_TKh, sin_TKh):
    (T, N, K), out_TNK = x_TNK.shape, empty(backend, x_TNK.shape)
    if out_TNK.size:
        arrays = plain(backend, x_TNK), plain(backend, cos_TKh), plain(backend, sin_TKh), out_TNK
        sizes = np.int32(T), np.int32(N), np.int32(K // 2)
        launch(backend, "rope_kernel", blocks_for(out_TNK.size // 2), 256, (*arrays, *sizes))
    return out_TNK
