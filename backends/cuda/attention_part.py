"""One stretch of a sequence's keys, with what it weighs beside others: the kernel of `attention`."""

from __future__ import annotations

from backends.cuda.arrays import empty, plain
from backends.cuda.attention import WIDEST, attend, stretch


def attention_part(backend, q_THK, k_GSK, v_GSK, *, past, window=None):
    if q_THK.shape[2] > WIDEST:
        return NotImplemented
    out_THK, lse_TH = empty(backend, q_THK.shape), empty(backend, q_THK.shape[:2])
    keys = stretch(backend, 0, len(q_THK), k_GSK, v_GSK, past)
    attend(backend, plain(backend, q_THK), [keys], window, out_THK, lse_TH)
    return out_THK, lse_TH
