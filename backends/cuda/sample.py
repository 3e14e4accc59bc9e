"""Choosing the next token without waiting for anything, see sample.cu. Without top-k the definition is run."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import SEQUENCES, address, blocks_for, empty, launch, plain, table

COLUMNS = 1024  # as in sample.cu
MOST = 256  # the largest top-k that the columns can tell apart well
# As `struct Choice` in sample.cu; an address is a uint64.
CHOICE = np.dtype([
    ("seen_S", np.uint64), ("S", np.int32), ("draws", np.int32), ("top_k", np.int32), ("penalty", np.float32),
    ("temperature", np.float32), ("top_p", np.float32), ("min_p", np.float32), ("unused", np.int32),
])  # fmt: skip


def sample(backend, logits_V, seen_N, *, sampling, uniform):
    """The id, on the device. seen_N may hold an id several times, and it and `uniform` may be on the device, too."""
    if sampling.do_sample and not 0 < min(sampling.top_k, len(logits_V)) <= MOST:
        return NotImplemented
    xp, uniform_1 = backend.xp, None
    if sampling.repetition_penalty != 1.0:
        seen_N = xp.ascontiguousarray(xp.asarray(seen_N), np.int64)
    if sampling.do_sample:
        uniform_1 = xp.asarray(uniform, np.float64).reshape(1)
    return choose(backend, plain(backend, logits_V)[None], [seen_N], [sampling], uniform_1).reshape(())


def choose(backend, logits_NV, seen, samplings, uniform_N):
    """An id for each row of logits, however each of them chooses: token_N. Rows may have gaps between them.

    seen        per row the ids that a penalty strikes, on the device
    uniform_N   the dice, on the device; None if nobody throws them
    """
    token_N = empty(backend, (len(samplings),), np.int64)
    for n in range(0, len(samplings), SEQUENCES):
        rows = slice(n, n + SEQUENCES)
        dice_N = None if uniform_N is None else uniform_N[rows]
        choose_together(backend, logits_NV[rows], seen[rows], samplings[rows], dice_N, token_N[rows])
    return token_N


def choose_together(backend, logits_NV, seen, samplings, uniform_N, token_N) -> None:
    (N, V), stride = logits_NV.shape, np.int64(logits_NV.strides[0] // 4)
    rows = [choice(sampling, seen_S, V) for sampling, seen_S in zip(samplings, seen, strict=True)]
    choices, longest = table(CHOICE, rows), max(row[1] for row in rows)
    if longest or any(row[5] != 1.0 for row in rows):
        out_NV = empty(backend, (N, V))
        arguments = address(logits_NV), stride, out_NV, np.int32(V), choices
        launch(backend, "temper_kernel", (blocks_for(V), N), 256, arguments)
        if longest:
            launch(backend, "penalise_kernel", (-(-longest // 256), N), 256, arguments)
        logits_NV, stride = out_NV, np.int64(V)
    best_NC, place = empty(backend, (N, COLUMNS), np.uint64), address(logits_NV)
    launch(backend, "columns_kernel", (COLUMNS // 8, N), 256, (place, stride, best_NC, np.int32(V)))
    launch(backend, "sample_kernel", N, COLUMNS, (place, stride, best_NC, uniform_N, token_N, np.int32(V), choices))


def choice(sampling, seen_S, V: int) -> tuple:
    """As `struct Choice` has it."""
    penalty, draws = sampling.repetition_penalty, sampling.do_sample
    place, S = (address(seen_S), len(seen_S)) if penalty != 1.0 else (0, 0)
    top_k, temperature = (min(sampling.top_k, V), sampling.temperature) if draws else (1, 1.0)
    return place, S, draws, top_k, penalty, temperature, sampling.top_p, sampling.min_p, 0
