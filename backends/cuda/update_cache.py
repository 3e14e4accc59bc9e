"""New keys and values behind the old ones."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import format_of, launch, plain

WARPS = 4  # vectors that a block takes


def update_cache(backend, k_TGK, v_TGK, *, spans, layer, window=None):
    keys, values = [], []
    for span in spans:
        k_tGK, v_tGK = k_TGK[span.start : span.stop], v_TGK[span.start : span.stop]
        if span.cache is None:
            views = [(k_tGK.swapaxes(0, 1), v_tGK.swapaxes(0, 1))]
        else:
            write(backend, plain(backend, k_tGK), plain(backend, v_tGK), span.cache, layer)
            views = visible(span.cache, layer, span.stop - span.start, window)
        keys.append(views[0][0] if window is None else [k_GSK for k_GSK, _ in views])
        values.append(views[0][1] if window is None else [v_GSK for _, v_GSK in views])
    return keys, values


def write(backend, k_TGK, v_TGK, cache, layer) -> None:
    (T, G, K), kv_2GNK, past_1 = k_TGK.shape, cache.layers[layer], getattr(cache, "past_1", None)
    stored, scales = parts_of(kv_2GNK)
    sizes = np.int32(T), np.int32(G), np.int32(kv_2GNK.shape[2]), np.int32(K)
    past = np.int32(0 if past_1 is not None else cache.length)
    arguments = k_TGK, v_TGK, format_of(kv_2GNK), stored, scales, past_1, past, *sizes
    launch(backend, "update_cache_kernel", -(-2 * G * T // WARPS), 32 * WARPS, arguments)


def parts_of(kv):
    """A cache's numbers, and its scales or None."""
    return (kv.values, kv.scales) if kv.dtype == np.int8 else (kv, None)


def visible(cache, layer, T, window) -> list:
    """What the T new tokens may see, as stretches (k_GSK, v_GSK). A recorded step does not know: all slots."""
    if getattr(cache, "past_1", None) is not None:
        return [(cache.layers[layer][0], cache.layers[layer][1])]
    first = 0 if window is None else max(0, cache.length - (window - 1))
    return [(kv_2GSK[0], kv_2GSK[1]) for kv_2GSK in cache.stretches(layer, first, cache.length + T)]
