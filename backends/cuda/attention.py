"""`attention` and its parts: one launch for all sequences that decode, and one for each prompt.

few tokens, or not bfloat16      attention.cu           bound by reading the cache
a prompt, a bfloat16 cache       attention_prompt.cu    bound by arithmetic: tensor cores
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from backends.cuda.arrays import BFLOAT16, SEQUENCES, address, empty, format_of, gpu, launch, plain, table
from backends.cuda.update_cache import parts_of

ROWS, THREADS = 8, 128  # as in attention.cu
WIDEST = 256  # numbers of a head
BUSY = 264  # blocks that keep a large GPU busy: two for each of 132 multiprocessors
PROMPT_ROWS, PAD = 64, 8  # as in attention_prompt.cu: rows of a block, which is also keys of a tile
FEWEST_KEYS = 64  # of a split, as in attention.cu
# As `struct Sequence` in attention.cu; an address is a uint64.
SEQUENCE = np.dtype([
    ("k_GSK", np.uint64), ("v_GSK", np.uint64), ("k_scale_GS", np.uint64), ("v_scale_GS", np.uint64),
    ("past_1", np.uint64), ("stride_G", np.int64), ("stride_S", np.int64), ("scale_stride_G", np.int64),
    ("first", np.int32), ("T", np.int32), ("S", np.int32), ("past", np.int32),
])  # fmt: skip


class Stretch(NamedTuple):
    """Rows first .. first + T - 1 of the queries, and a stretch of their sequence's keys, as kernels take them.

    past     how many of the keys lie before the first query's own place
    past_1   that number on the device, where a recorded step finds it; then keys beyond the last query's are not seen
    """

    first: int
    T: int
    k_GSK: Any
    v_GSK: Any
    k_scale_GS: Any
    v_scale_GS: Any
    past: int
    past_1: Any


def attention(backend, q_THK, keys, values, *, spans, window=None):
    if q_THK.shape[2] > WIDEST:
        return NotImplemented
    q_THK, out_THK = plain(backend, q_THK), empty(backend, q_THK.shape)
    stretches = []
    for span, k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        T, past_1 = span.stop - span.start, getattr(span.cache, "past_1", None)
        stretches.append(stretch(backend, span.start, T, k_GSK, v_GSK, k_GSK.shape[1] - T, past_1))
    attend(backend, q_THK, stretches, window, out_THK)
    return out_THK


def stretch(backend, first, T, k_GSK, v_GSK, past, past_1=None) -> Stretch:
    (k, k_scale), (v, v_scale) = parts_of(readable(backend, k_GSK)), parts_of(readable(backend, v_GSK))
    if k.strides != v.strides:
        k, v = backend.xp.ascontiguousarray(k), backend.xp.ascontiguousarray(v)
    return Stretch(first, T, k, v, k_scale, v_scale, past, past_1)


def attend(backend, q_THK, stretches, window, out_THK, lse_TH=None) -> None:
    """Prompts one by one, as each fills the device; all others together."""
    _, H, K = q_THK.shape
    alike: dict[tuple, list[Stretch]] = {}
    for one in stretches:
        rows, whole = one.T * (H // one.k_GSK.shape[0]), begins_on_16_bytes(one.k_GSK) and begins_on_16_bytes(one.v_GSK)
        if rows >= PROMPT_ROWS and whole and one.past_1 is None and one.k_GSK.dtype == BFLOAT16 and K in (64, 128):
            attend_prompt(backend, q_THK, one, window, out_THK, lse_TH)
        else:
            alike.setdefault((int(format_of(one.k_GSK)), whole and K % 8 == 0), []).append(one)
    for (format, whole), some in alike.items():
        lanes = 32 if not whole or K > 128 else 16 if K > 64 else 8
        constants = {"KEY_FORMAT": format, "KEY_LANES": lanes, "KEY_WHOLE": int(whole)}
        for n in range(0, len(some), SEQUENCES):
            attend_together(backend, q_THK, some[n : n + SEQUENCES], window, out_THK, lse_TH, constants)


def attend_together(backend, q_THK, stretches, window, out_THK, lse_TH, constants) -> None:
    """One launch for up to `SEQUENCES` of them."""
    (_, H, K), G, N = q_THK.shape, stretches[0].k_GSK.shape[0], len(stretches)
    row_blocks = max(-(-one.T * (H // G) // ROWS) for one in stretches)
    longest = max(one.k_GSK.shape[1] for one in stretches)
    splits = max(1, min(-(-longest // FEWEST_KEYS), BUSY // (N * G * row_blocks)))
    partial, finished = None, None
    if splits > 1:
        partial = empty(backend, (N * G * row_blocks * splits * ROWS * (K + 2),))
        finished = gpu(backend).counters(N * G * row_blocks)
    sizes = map(np.int32, (H, G, K, window or 0))
    arguments = q_THK, out_THK, lse_TH, partial, finished, *sizes, table(SEQUENCE, [row(one) for one in stretches])
    launch(backend, "attention_kernel", (row_blocks, splits, N * G), THREADS, arguments, **constants)


def row(one: Stretch) -> tuple:
    """As `struct Sequence` has it."""
    arrays = one.k_GSK, one.v_GSK, one.k_scale_GS, one.v_scale_GS, one.past_1
    past = one.past if one.past_1 is None else 0
    return *map(address, arrays), *strides_of(one), one.first, one.T, one.k_GSK.shape[1], past


def strides_of(one: Stretch) -> tuple[int, int, int]:
    """Of a head, of a key, and of a head's scales, in numbers."""
    k, k_scale = one.k_GSK, one.k_scale_GS
    return k.strides[0] // k.itemsize, k.strides[1] // k.itemsize, 0 if k_scale is None else k_scale.strides[0] // 4


def attend_prompt(backend, q_THK, one: Stretch, window, out_THK, lse_TH) -> None:
    """A prompt's rows, on the tensor cores."""
    (_, H, K), (G, S, _), rows = q_THK.shape, one.k_GSK.shape, slice(one.first, one.first + one.T)
    stride_G, stride_S, _ = strides_of(one)
    lse_TH = None if lse_TH is None else lse_TH[rows]
    arrays = q_THK[rows], address(one.k_GSK), address(one.v_GSK), out_THK[rows], lse_TH
    sizes = map(np.int32, (one.T, H, G, K, S, one.past, window or 0))
    arguments = *arrays, *sizes, np.int64(stride_G), np.int64(stride_S)
    shared_bytes = 4 * PROMPT_ROWS * (K + PAD) * 2  # two tiles of keys and two of values
    blocks = -(-one.T * (H // G) // PROMPT_ROWS), G
    launch(backend, "attention_prompt_kernel", blocks, THREADS, arguments, shared_bytes)


def begins_on_16_bytes(x_GSK) -> bool:
    """Whether every vector does, so that it can be read in pieces of that size."""
    return not any(place % 16 for place in (*x_GSK.strides[:2], int(address(x_GSK))))


def readable(backend, kv_GSK):
    """Keys or values whose last axis lies in one piece, as it does in every cache."""
    if kv_GSK.dtype == np.int8 or kv_GSK.strides[2] == kv_GSK.itemsize:
        return kv_GSK
    return backend.xp.ascontiguousarray(kv_GSK)
