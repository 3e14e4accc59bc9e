"""Choosing the next token without waiting for anything, see sample.cu. Without top-k the definition is run."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import blocks_for, empty, launch, plain

COLUMNS = 1024  # as in sample.cu
MOST = 256  # the largest top-k that the columns can tell apart well


def sample(backend, logits_V, seen_N, *, sampling, uniform):
    """The id, on the device. seen_N may hold an id several times, and it and `uniform` may be on the device, too."""
    V, k = len(logits_V), min(sampling.top_k, len(logits_V))
    if sampling.do_sample and not 0 < k <= MOST:
        return NotImplemented
    xp, logits_V, token_1 = backend.xp, plain(backend, logits_V), empty(backend, (1,), np.int64)
    temperature = sampling.temperature if sampling.do_sample else 1.0
    logits_V = tempered(backend, logits_V, seen_N, sampling.repetition_penalty, temperature)
    dice_1, k = None, np.int32(k if sampling.do_sample else 1)
    if sampling.do_sample:
        dice_1 = xp.asarray(uniform, np.float64).reshape(1)
    settings = k, np.float32(sampling.top_p), np.float32(sampling.min_p)
    launch(backend, "sample_kernel", 1, COLUMNS, (logits_V, dice_1, token_1, np.int32(V), *settings))
    return token_1.reshape(())


def tempered(backend, logits_V, seen_N, penalty, temperature):
    """The logits after penalty and temperature; the caller's are not touched."""
    N, V = len(seen_N), len(logits_V)
    if temperature == 1.0 and (penalty == 1.0 or not N):
        return logits_V
    out_V, temperature = empty(backend, (V,)), np.float32(temperature)
    launch(backend, "temper_kernel", blocks_for(V), 256, (logits_V, out_V, temperature, np.int32(V)))
    if penalty != 1.0 and N:
        seen_N = backend.xp.ascontiguousarray(backend.xp.asarray(seen_N), np.int64)
        arguments = logits_V, out_V, seen_N, np.int32(N), np.float32(penalty), temperature
        launch(backend, "penalise_kernel", -(-N // 256), 256, arguments)
    return out_V
