"""New keys and values behind the old ones."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import SEQUENCES, address, format_of, launch, plain, table

WARPS = 4  # vectors that a block takes
# As `struct Room` in update_cache.cu; an address is a uint64.
ROOM = np.dtype([
    ("kv_2GNK", np.uint64), ("scale_2GN", np.uint64), ("past_1", np.uint64), ("first", np.int32), ("T", np.int32),
    ("past", np.int32), ("N", np.int32),
])  # fmt: skip


def update_cache(backend, k_TGK, v_TGK, *, spans, layer, window=None):
    kept = [span for span in spans if span.cache is not None]
    if kept:
        write(backend, plain(backend, k_TGK), plain(backend, v_TGK), kept, layer)
    keys, values = [], []
    for span in spans:
        if span.cache is None:
            rows = slice(span.start, span.stop)
            views = [(k_TGK[rows].swapaxes(0, 1), v_TGK[rows].swapaxes(0, 1))]
        else:
            views = visible(span.cache, layer, span.stop - span.start, window)
        keys.append(views[0][0] if window is None else [k_GSK for k_GSK, _ in views])
        values.append(views[0][1] if window is None else [v_GSK for _, v_GSK in views])
    return keys, values


def write(backend, k_TGK, v_TGK, spans, layer) -> None:
    """The new keys and values of these sequences into their caches."""
    _, G, K = k_TGK.shape
    alike: dict[int, list] = {}
    for span in spans:
        alike.setdefault(int(format_of(span.cache.layers[layer])), []).append(span)
    for format, some in alike.items():
        for n in range(0, len(some), SEQUENCES):
            rooms = [room(span, layer) for span in some[n : n + SEQUENCES]]
            longest = max(span.stop - span.start for span in some[n : n + SEQUENCES])
            arguments = k_TGK, v_TGK, *map(np.int32, (format, G, K)), table(ROOM, rooms)
            blocks = -(-2 * G * longest // WARPS), len(rooms)
            launch(backend, "update_cache_kernel", blocks, 32 * WARPS, arguments)


def room(span, layer) -> tuple:
    """As `struct Room` has it."""
    kv_2GNK, past_1 = span.cache.layers[layer], getattr(span.cache, "past_1", None)
    stored, scales = parts_of(kv_2GNK)
    past = span.cache.length if past_1 is None else 0
    return address(stored), address(scales), address(past_1), span.start, span.stop - span.start, past, kv_2GNK.shape[2]


def parts_of(kv):
    """A cache's numbers, and its scales or None."""
    return (kv.values, kv.scales) if kv.dtype == np.int8 else (kv, None)


def visible(cache, layer, T, window) -> list:
    """What the T new tokens may see, as stretches (k_GSK, v_GSK). A recorded step does not know: all slots."""
    if getattr(cache, "past_1", None) is not None:
        return [(cache.layers[layer][0], cache.layers[layer][1])]
    first = 0 if window is None else max(0, cache.length - (window - 1))
    return [(kv_2GSK[0], kv_2GSK[1]) for kv_2GSK in cache.stretches(layer, first, cache.length + T)]
