"""`attention` and its parts: one launch for each sequence.

few tokens, or not bfloat16      attention.cu           bound by reading the cache
a prompt, a bfloat16 cache       attention_prompt.cu    bound by arithmetic: tensor cores
"""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import BFLOAT16, address, empty, format_of, gpu, launch, plain
from backends.cuda.update_cache import parts_of

ROWS, THREADS = 8, 128  # as in attention.cu
WIDEST = 256  # numbers of a head
BUSY = 264  # blocks that keep a large GPU busy: two for each of 132 multiprocessors
PROMPT_ROWS, PAD = 64, 8  # as in attention_prompt.cu: rows of a block, which is also keys of a tile
FEWEST_KEYS = 64  # of a split: with fewer, merging takes longer than reading


def attention(backend, q_THK, keys, values, *, spans, window=None):
    if q_THK.shape[2] > WIDEST:
        return NotImplemented
    q_THK, out_THK = plain(backend, q_THK), empty(backend, q_THK.shape)
    for span, k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        past = k_GSK.shape[1] - (span.stop - span.start)
        past_1, rows = getattr(span.cache, "past_1", None), slice(span.start, span.stop)
        attend(backend, q_THK[rows], k_GSK, v_GSK, past, window, out_THK[rows], past_1=past_1)
    return out_THK


def attend(backend, q_THK, k_GSK, v_GSK, past, window, out_THK, lse_TH=None, past_1=None) -> None:
    """One sequence's queries against a stretch of its keys, of which `past` lie before the first query's own place.

    past_1   that number on the device, where a recorded step finds it; then keys beyond the last query's are not seen
    """
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    k_GSK, v_GSK = readable(backend, k_GSK), readable(backend, v_GSK)
    (k, k_scale), (v, v_scale) = parts_of(k_GSK), parts_of(v_GSK)
    if k.strides != v.strides:
        k, v = backend.xp.ascontiguousarray(k), backend.xp.ascontiguousarray(v)
    if past_1 is None and T * (H // G) >= PROMPT_ROWS and on_tensor_cores(k, v, K):
        attend_prompt(backend, q_THK, k, v, past, window, out_THK, lse_TH)
        return
    row_blocks = -(-T * (H // G) // ROWS)
    splits = max(1, min(S // FEWEST_KEYS, BUSY // (G * row_blocks)))
    parts, finished = None, None
    if splits > 1:
        parts = empty(backend, (G * row_blocks * splits * ROWS * (K + 2),))
        finished = gpu(backend).counters(G * row_blocks)
    scales = (address(k_scale), address(v_scale)) if k_scale is not None else (None, None)
    scale_stride = k_scale.strides[0] // 4 if k_scale is not None else 0
    strides = k.strides[0] // k.itemsize, k.strides[1] // k.itemsize, scale_stride
    sizes = T, H, G, K, S, 0 if past_1 is not None else past, window or 0
    arguments = (
        q_THK, address(k), address(v), *scales, out_THK, lse_TH, parts, finished, past_1,
        *map(np.int32, sizes), *map(np.int64, strides),
    )  # fmt: skip
    whole = K % 8 == 0 and begins_on_16_bytes(k) and begins_on_16_bytes(v)
    lanes = 32 if not whole or K > 128 else 16 if K > 64 else 8
    constants = {"KEY_FORMAT": int(format_of(k_GSK)), "KEY_LANES": lanes, "KEY_WHOLE": int(whole)}
    launch(backend, "attention_kernel", (splits, row_blocks, G), THREADS, arguments, **constants)


def attend_prompt(backend, q_THK, k_GSK, v_GSK, past, window, out_THK, lse_TH) -> None:
    """The same for a prompt's rows, on the tensor cores."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    sizes, strides = (T, H, G, K, S, past, window or 0), (k_GSK.strides[0] // 2, k_GSK.strides[1] // 2)
    arrays = q_THK, address(k_GSK), address(v_GSK), out_THK, lse_TH
    arguments = *arrays, *map(np.int32, sizes), *map(np.int64, strides)
    shared_bytes = 4 * PROMPT_ROWS * (K + PAD) * 2  # two tiles of keys and two of values
    blocks = -(-T * (H // G) // PROMPT_ROWS), G
    launch(backend, "attention_prompt_kernel", blocks, THREADS, arguments, shared_bytes)


def on_tensor_cores(k, v, K) -> bool:
    """Whether they take these keys and values."""
    return k.dtype == BFLOAT16 and K in (64, 128) and begins_on_16_bytes(k) and begins_on_16_bytes(v)


def begins_on_16_bytes(x_GSK) -> bool:
    """Whether every vector does, so that it can be read in pieces of that size."""
    return not any(place % 16 for place in (*x_GSK.strides[:2], int(address(x_GSK))))


def readable(backend, kv_GSK):
    """Keys or values whose last axis lies in one piece, as it does in every cache."""
    if kv_GSK.dtype == np.int8 or kv_GSK.strides[2] == kv_GSK.itemsize:
        return kv_GSK
    return backend.xp.ascontiguousarray(kv_GSK)
