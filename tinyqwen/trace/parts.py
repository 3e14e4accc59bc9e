"""Attention that was computed in parts, put together again: who looked at whom, as one table over all keys.

A part's weights sum to one among themselves; times its share they are what one softmax would have given. Where a part's
keys lie follows from the config and the place of the first query: blocks/dual_chunk.py and blocks/sliding_window.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinyqwen.blocks.dual_chunk import cut, stretches
from tinyqwen.config import Config


def whole_weights(config: Config, layer: int, first: int, total: int, kept: Iterator) -> np.ndarray:
    """weights_HTS of the queries first .. total - 1 of one sequence.

    kept   results of `softmax` (an array), or of `softmax_part` (weights_GRTS and lse_GRT), in order; as many are taken
           as these queries have
    """
    H, chunk, window = config.num_attention_heads, config.dual_chunk_attention_config, config.window(layer)
    whole_HTS = np.zeros((H, total - first, total), np.float32)
    for begin, stop in [(first, total)] if chunk is None else cut(first, total, chunk):
        rows = slice(begin - first, stop - first)
        if chunk is not None:
            parts = [(start, next(kept)) for start, _ in stretches(begin, stop, chunk)]
        else:
            parts = list(in_order(kept, 0 if window is None else max(0, first - (window - 1)), total))
        lse_NHT = np.stack([log_sum(result, H) for _, result in parts])
        share_NHT = np.exp(lse_NHT - lse_NHT.max(axis=0))
        share_NHT /= share_NHT.sum(axis=0)
        for (start, result), share_HT in zip(parts, share_NHT):
            part_HTS = weights_of(result, H)
            whole_HTS[:, rows, start : start + part_HTS.shape[2]] = share_HT[:, :, None] * part_HTS
    return whole_HTS


def in_order(kept: Iterator, start: int, total: int) -> Iterator:
    """Stretches that follow each other, up to the last key."""
    while start < total:
        result = next(kept)
        yield start, result
        start += (result[0] if isinstance(result, tuple) else result).shape[3]


def weights_of(result, H: int) -> np.ndarray:
    weights_GRTS = result[0] if isinstance(result, tuple) else result
    return weights_GRTS.reshape(H, *weights_GRTS.shape[2:])


def log_sum(result, H: int) -> np.ndarray:
    """0 where all keys are one part: its share is 1."""
    if not isinstance(result, tuple):
        return np.zeros((H, result.shape[2]), np.float32)
    return result[1].reshape(H, -1)
