"""`attention_part`: the kernel of attention.py on one stretch of keys, where they lie; nothing of them is copied.

A decoding token of Dual Chunk Attention meets its keys in three stretches and reads each once, as plain attention does.
What it costs more is two calls and the merge.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backends.cpu.attention import as_stored, attend
from backends.cpu.rows import F32, plain


def attention_part_for(features: frozenset[str]) -> Callable:
    """The body of `attention_part` for a processor with these features; the definition is in tinyqwen/blocks."""
    bf16 = "bf16" in features

    def attention_part(backend, q_THK, k_GSK, v_GSK, *, past, window=None):
        q_THK = plain(q_THK)
        out_THK, lse_TH = np.empty(q_THK.shape, F32), np.empty(q_THK.shape[:2], F32)
        attend(q_THK, *as_stored(k_GSK, v_GSK, bf16), past, window, out_THK, lse_TH)
        return out_THK, lse_TH

    return attention_part
