"""The routed experts: the tokens are grouped by expert, each expert reads its matrices once for all of its tokens.

Bytes that must move: the matrices of every expert that somebody chose (3 x 2560 x 3584 weights each in the 57B-A14B; 8
of 64 for one token, all 64 for a prompt), and nothing of the others. Tokens are gathered for one expert at a time: all
at once would need room for A copies of the prompt.

                              1 token                   (8 of 64 experts, so small that finding them is what costs)
    v0  NumPy                  460 us                   looks through all choices once for each of the E experts
    v1  sorted choices         220 us                   looks once, then only at experts that were chosen; the weighted
                                                        sum is a kernel
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.rows import plain


def experts(backend, x_TD, expert_TA, weight_TA, weights):
    linear, swiglu = backend.bodies["linear"], backend.bodies["swiglu"]
    x_TD, weight_N = plain(x_TD), plain(weight_TA).ravel()
    out_TD = np.zeros(x_TD.shape, x_TD.dtype)
    choice_N = np.ascontiguousarray(expert_TA).ravel()  # N = T * A choices
    order_N = choice_N.argsort(kind="stable")
    token_N = order_N // expert_TA.shape[1]
    count_E = np.bincount(choice_N, minlength=len(weights))
    start = 0
    for expert in count_E.nonzero()[0].tolist():
        stop = start + int(count_E[expert])
        mlp = weights[expert]
        x_ND = x_TD.take(token_N[start:stop], axis=0)
        gate_NF = linear(backend, x_ND, mlp.gate_proj.weight)
        up_NF = linear(backend, x_ND, mlp.up_proj.weight)
        y_ND = linear(backend, swiglu(backend, gate_NF, up_NF), mlp.down_proj.weight)
        add_weighted(y_ND, token_N[start:stop], weight_N[order_N[start:stop]], out_TD)
        start = stop
    return out_TD


@kernel
def add_weighted(y_ND, token_N, weight_N, out_TD):
    """Experts come in the order of their numbers, so a token's sum is taken in that order: always the same."""
    for n in range(token_N.size):
        t, weight = token_N[n], weight_N[n]
        for d in range(out_TD.shape[1]):
            out_TD[t, d] += weight * y_ND[n, d]
