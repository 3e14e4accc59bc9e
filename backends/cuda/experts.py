"""The routed experts of few tokens, all choices in two launches. Many tokens take the definition, expert by expert."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import address, as_matrix, empty, gpu, launch, plain, rows_at_once

FEW = 256  # choices: 32 tokens of 8 experts each, as many as `linear` takes
THREADS = 128  # as in matrix.cuh


def experts(backend, x_TD, expert_TA, weight_TA, weights):
    (T, A), D = expert_TA.shape, x_TD.shape[1]
    found = table(backend, weights) if 0 < T * A <= FEW else None
    if found is None:
        return NotImplemented
    format, table_E = found
    M, rows = weights[0].gate_proj.weight.shape[0], rows_at_once(weights[0].gate_proj.weight)
    expert_TA = backend.xp.ascontiguousarray(expert_TA, np.int64)
    hidden_NM, out_TD = empty(backend, (T * A, M)), empty(backend, (T, D))
    sizes = np.int32(A), np.int32(D), np.int32(M)
    arguments = plain(backend, x_TD), expert_TA, table_E, format, hidden_NM, *sizes
    launch(backend, "experts_gate_up_kernel", (-(-M // rows), T * A), THREADS, arguments)
    arguments = hidden_NM, expert_TA, plain(backend, weight_TA), table_E, format, out_TD, *sizes
    launch(backend, "experts_down_kernel", (-(-D // rows), T), THREADS, arguments)
    return out_TD


def table(backend, weights):
    """The experts' format and where their matrices lie, on the device; None if they are not all of one format.

    Made once for a layer, and kept together with what it points to.
    """
    kept, key = gpu(backend).kept, ("experts", id(weights))
    if key not in kept:
        matrices = [
            as_matrix(backend, place.weight)
            for expert in weights
            for place in (expert.gate_proj, expert.up_proj, expert.down_proj)
        ]
        found = None
        if None not in matrices and len({int(format) for format, _, _ in matrices}) == 1:
            places = [0 if part is None else int(address(part)) for matrix in matrices for part in matrix[1:]]
            found = matrices[0][0], backend.xp.asarray(np.array(places, np.uint64))
        kept[key] = weights, matrices, found
    return kept[key][2]
