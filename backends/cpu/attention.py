"""`attention` on this processor: any queries against any keys, and the scores nowhere but in the nearest cache.

Bytes that must move: a decoding token reads all K and V that it sees, once for the R query heads that share them. In
the 0.5B that is 24 KB for each token of context in a float32 cache, 12 KB in bfloat16, 6.4 KB in int8. The arithmetic
to hide behind the reading: 2 * R * K multiply-adds for each key and KV head, 56 instructions in float32 and 28 in pairs
of bfloat16, besides R exponentials. A prompt is bound by arithmetic alone.

One design serves both (attention_block.py): rows against tiles of keys. A prompt has many rows: they are cut into
blocks, and a block walks all its keys. A decoding token has R: its keys are cut into chunks of a fixed length, each
gives a part, and parts are merged in order, so the result is the same bits whatever the number of threads.

Its keys have to be turned, which pays if many rows use them. For the R <= 8 of a token that decodes from a bfloat16
cache a second kernel (attention_token.py) takes keys and values as they lie.

                                        a layer of the 0.5B, one thread     1 token, 8192 keys     512 tokens
    v1  plain loops                     a head at a time, float32           2.0  ms                47   ms
    v2  tiles in registers              K and V read once for R heads       1.38                    5.3
    v3  the next tile is sent for       while this one is computed          0.56                    5.3
    v4  pairs of bfloat16               a bfloat16 cache                    0.33                    3.3
    v5  int8                            multiplied as bfloat16, too         0.33                    3.5
    v6  two threads                     (bfloat16)                          0.17                    1.7

Measured with other programs running: v3 reads 15 GB/s, v6 24, where two threads that only read got 27. Sent for into
the first-level cache instead of the second, v3 takes 0.98 ms: a tile of keys and values would fill it, and drives out
the one in work. From the nearest cache a key and KV head take 111 cycles in v3 and 68 in v4.

    a layer of the 0.5B, one token, bfloat16, microseconds      8192 keys, threads 1, 2     32768 keys, threads 1, 2
    v6  attention_block.py                                      353     252                 1378    965
    v7  attention_token.py, and a cache in large pages          248     170                  933    607

The last is 27.7 GB/s (25.6 to 28.6), 78 % of what two threads read in the same run, where v6 came to 49 % in its own.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from backends.cpu.attention_block import attend_blocks, finish_parts
from backends.cpu.attention_numbers import FLOATS, PAIRS
from backends.cpu.attention_together import attend_together
from backends.cpu.attention_token import HEADS, attend_token
from backends.cpu.rows import plain
from backends.cpu.team import shared

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK = 1024  # keys of a chunk
BLOCK = 256  # rows of a block, about
NO_PARTS = np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0, 0), np.float32)
NO_LSE = np.empty((0, 0), np.float32)

attend_shared, token_shared = shared(attend_blocks), shared(attend_token)


def attention_for(features: frozenset[str]) -> Callable:
    """The body of `attention` for a processor with these features; the definition is in tinyqwen/blocks."""
    bf16 = "bf16" in features

    def attention(backend, q_THK, keys, values, *, spans, window=None):
        q_THK = plain(q_THK)
        out_THK = np.empty(q_THK.shape, np.float32)
        a_token_of_each = bf16 and window is None and 1 < len(spans) == len(q_THK)
        if a_token_of_each and attend_together(q_THK, keys, values, CHUNK, out_THK):
            return out_THK
        for (start, stop, _), k_GSK, v_GSK in zip(spans, keys, values, strict=True):
            past, stored = k_GSK.shape[1] - (stop - start), as_stored(k_GSK, v_GSK, bf16)
            attend(q_THK[start:stop], *stored, past, window, out_THK[start:stop], NO_LSE)
        return out_THK

    return attention


def as_stored(k_GSK, v_GSK, bf16: bool):
    """Keys and values as kernels take them, their scales or None, and how to multiply.

    In pairs where the cache holds no more than bfloat16 does: then queries and weights are rounded to bfloat16 as well,
    as transformers and its like do throughout. With a float32 cache nothing is rounded.
    """
    if k_GSK.dtype == np.float32:
        return k_GSK, v_GSK, None, None, FLOATS
    pairs = bf16 and k_GSK.shape[2] % 32 == 0
    if k_GSK.dtype == BFLOAT16:
        kind = np.int32 if pairs else np.uint16
        return k_GSK.view(kind), v_GSK.view(kind), None, None, PAIRS if pairs else FLOATS
    return k_GSK.values, v_GSK.values, k_GSK.scales, v_GSK.scales, PAIRS if pairs else FLOATS


def attend(q_THK, k_GSK, v_GSK, k_scale_GS, v_scale_GS, kind, past, window, out_THK, lse_TH):
    """One sequence's queries against a stretch of its keys, of which `past` lie before the first query's own place."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    R, end = H // G, min(S, past + T)
    height = R if R <= 16 and (R >= 4 or T == 1) else 8  # rows of a tile: a token's, so that it needs no filling up
    block_rows = BLOCK // height * height
    window = past + T if window is None else min(window, past + T)
    first_key = max(0, past + 1 - window)
    if end <= first_key:  # nobody sees any of them
        out_THK[:], lse_TH[:] = 0, -np.inf
        return
    blocks = -(-T * R // block_rows)
    chunk_keys = CHUNK if blocks == 1 else S
    chunks = -(-(end - first_key) // chunk_keys)
    m_GCn, part_GCnK = NO_PARTS if chunks == 1 else room_for_parts(G, chunks, -(-T * R // height) * height, K)
    # Tokens first: views whose memory is never end to end. Kernels are compiled for that type, and once only.
    k_SGK, v_SGK = k_GSK.swapaxes(0, 1)[:end], v_GSK.swapaxes(0, 1)[:end]
    if T == 1 and R <= HEADS and k_GSK.dtype == np.int32 and end_to_end(k_GSK) and end_to_end(v_GSK):
        sixteens = (kind,) * (k_GSK.shape[2] // 16)
        token_shared(
            G * chunks, q_THK, k_SGK, v_SGK, (first_key, chunk_keys), (kind,) * R, sixteens,
            m_GCn, part_GCnK, out_THK, lse_TH,
        )  # fmt: skip
    else:
        attend_shared(
            G * blocks * chunks, q_THK, k_SGK, v_SGK, k_scale_GS, v_scale_GS,
            (block_rows, first_key, chunk_keys, past, window), (kind,) * height, m_GCn, part_GCnK, out_THK, lse_TH,
        )  # fmt: skip
    if chunks > 1:
        finish_parts(m_GCn, part_GCnK, k_SGK, out_THK, lse_TH)


def end_to_end(x_GSK) -> bool:
    """Whether a KV head's rows follow each other in memory without gaps, as they do in a cache."""
    return x_GSK.strides[1] == x_GSK.shape[2] * x_GSK.itemsize


def room_for_parts(G, chunks, rows, K):
    width = -(-K // 16) * 16 + 16
    return np.empty((G, chunks, rows), np.float32), np.empty((G, chunks, rows, width), np.float32)
