"""Who looked at whom: the attention weights of one layer, out of what `capture` kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyqwen.errors import UsageError
from tinyqwen.trace.capture import CapturedStep, Keep, missing
from tinyqwen.trace.parts import whole_weights


def attention_weights(layer: int) -> Keep:
    """What `attention_maps` needs."""
    place = f"layers.{layer}.self_attn."
    ends = "attention.softmax", "attention_part.softmax_part"
    return lambda path, operation: path.startswith(place) and path.endswith(ends)


@dataclass
class AttentionMap:
    """Who looked at whom in one step of one sequence: row t says how token `position` + t shares out its attention.

    weights_HTS   each row is positive and sums to 1; key s is token s of the sequence
    """

    sequence: int
    phase: str
    position: int
    weights_HTS: np.ndarray

    @property
    def entropy_HT(self) -> np.ndarray:
        """How widely each query looks, in bits: 0 for one key only, log2(n) for n keys alike."""
        p = self.weights_HTS.astype(np.float64)
        return np.abs(-np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)), axis=-1))

    @property
    def sink_HT(self) -> np.ndarray:
        """The share of the sequence's first key, where attention rests that has nothing to look for (a "sink").

        Source: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
        """
        return self.weights_HTS[..., 0]


def attention_maps(steps: Sequence[CapturedStep], layer: int) -> list[AttentionMap]:
    """The attention weights of that layer, one map per step and sequence, in order. Head h is g * R + r."""
    keep, maps = attention_weights(layer), []
    for step in steps:
        kept = [one.result for one in step.kept if keep(one.path, one.operation)]
        if len(kept) < len(step.parts):
            raise missing(f"the attention weights of layer {layer}")
        results = iter(kept)
        for part in step.parts:
            total = part.position + part.stop - part.start
            assert step.config is not None
            weights_HTS = whole_weights(step.config, layer, part.position, total, results)
            maps.append(AttentionMap(part.sequence, part.phase, part.position, weights_HTS))
    return maps


def joined(maps: Sequence[AttentionMap], sequence: int = 0, last: int | None = None) -> AttentionMap:
    """The maps of one sequence as one: all its queries, or the `last` ones, against all its keys.

    What a query could not see, because it came later, is 0.

    >>> one, two = np.ones((1, 1, 1)), np.full((1, 1, 2), 0.5)
    >>> joined([AttentionMap(0, "prefill", 0, one), AttentionMap(0, "decode", 1, two)]).weights_HTS
    array([[[1. , 0. ],
            [0.5, 0.5]]])
    """
    mine = [one for one in maps if one.sequence == sequence]
    if not mine:
        raise UsageError(f"no sequence {sequence} was captured")
    (H, _, S), total = mine[-1].weights_HTS.shape, sum(one.weights_HTS.shape[1] for one in mine)
    first = max(0, total - (last or total))
    out_HTS = np.zeros((H, total - first, S), mine[0].weights_HTS.dtype)
    at = -first
    for one in mine:
        skip = max(0, -at)
        part_HTS = one.weights_HTS[:, skip:]
        at += one.weights_HTS.shape[1]
        out_HTS[:, at - part_HTS.shape[1] : max(at, 0), : part_HTS.shape[2]] = part_HTS
    return AttentionMap(sequence, mine[-1].phase, mine[0].position + first, out_HTS)
