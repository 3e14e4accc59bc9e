"""The router: a softmax over all experts' logits, and the few largest; of equals, the lower number.

Bytes that must move: the gate matrix (64 x 3584 in the 57B-A14B), by `linear`. What is left are 64 numbers a token:
NumPy would take eight passes over them, each a call.

                              1 token    512 tokens     (8 of 64 experts; microseconds, without `linear`)
    v0  NumPy                      11           700     softmax, a sort of all experts, the first few of it
    v1  loops                     0.9           375     the largest, and again the largest of the others, A times
    v2  rows over threads                       260
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.exp import exp
from backends.cpu.rows import F32
from backends.cpu.simd import fill, load_part, store_part, sum_of, zeros
from backends.cpu.team import shared

SHARED = 256  # tokens; choosing 8 of 64 takes about half a microsecond each


def route(backend, x_TD, gate_ED, *, top_k, normalise):
    logits_TE = backend.bodies["linear"](backend, x_TD, gate_ED)
    T, E = logits_TE.shape
    expert_TA, weight_TA = np.empty((T, min(top_k, E)), np.intp), np.empty((T, min(top_k, E)), F32)
    if T < SHARED:
        choose_rows(0, T, logits_TE, normalise, expert_TA, weight_TA)
    else:
        choose_rows_shared(T, logits_TE, normalise, expert_TA, weight_TA)
    return expert_TA, weight_TA


@kernel
def choose_rows(first, last, logits_TE, normalise, expert_TA, weight_TA):
    for t in range(first, last):
        p_E = logits_TE[t]  # its memory is ours: the logits have no other reader
        softmax_in_place(p_E)
        total = np.float32(0)
        for a in range(expert_TA.shape[1]):
            best = heaviest(p_E)
            expert_TA[t, a], weight_TA[t, a] = best, p_E[best]
            total += p_E[best]
            p_E[best] = -1  # taken
        if normalise:
            divide(weight_TA[t], total)


@kernel
def softmax_in_place(p_E):
    E, largest = p_E.size, p_E[0]
    for p in p_E:
        largest = max(largest, p)
    total = zeros()
    for e in range(0, E, 16):
        store_part(p_E, e, exp(load_part(p_E, e, E - e) - fill(largest)), E - e)
        total = total + load_part(p_E, e, E - e)  # read again: behind the end that gives zeros
    divide(p_E, sum_of(total))


@kernel
def divide(x_N, by):
    for n in range(0, x_N.size, 16):
        store_part(x_N, n, load_part(x_N, n, x_N.size - n) / fill(by), x_N.size - n)


@kernel
def heaviest(p_E):
    """The first of the largest that are not taken; where all are NaN, the first."""
    best = -1
    for e in range(p_E.size):
        if p_E[e] != -1 and (best < 0 or p_E[e] > p_E[best]):
            best = e
    return best


choose_rows_shared = shared(choose_rows)
