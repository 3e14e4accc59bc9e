"""The router: the logits by `linear`, and a warp for each token that chooses."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import empty, launch, plain

WARPS = 4  # tokens that a block takes


def route(backend, x_TD, gate_ED, *, top_k, normalise):
    logits_TE = backend.bodies["linear"](backend, x_TD, gate_ED)
    if logits_TE is NotImplemented:
        return NotImplemented
    T, E = logits_TE.shape
    A = min(top_k, E)
    expert_TA, weight_TA = empty(backend, (T, A), np.int64), empty(backend, (T, A))
    if T:
        sizes = np.int32(T), np.int32(E), np.int32(A), np.int32(bool(normalise))
        arguments = plain(backend, logits_TE), expert_TA, weight_TA, *sizes
        launch(backend, "route_kernel", -(-T // WARPS), 32 * WARPS, arguments, 4 * E * WARPS)
    return expert_TA, weight_TA
