"""A step: the tokens of all running sequences, laid end to end, that pass through the model together.

No padding and no batch axis. Linear layers, norms and experts see T tokens and never notice whose they are; attention
alone walks the spans. Prefill, chunked prefill, decode and batches that mix them are all the same call:

    sequence A decodes one token, B prefills four        token_T      a9 | b0 b1 b2 b3        T = 5
                                                         position_T    9 |  0  1  2  3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyqwen.kv_cache import KVCache


class Span(NamedTuple):
    """One sequence's share of a step: its rows [start, stop), and its cache (None: it has no past, as in training)."""

    start: int
    stop: int
    cache: KVCache | None


@dataclass(frozen=True)
class Step:
    """What `model.forward` needs to know besides the weights.

    token_T      ids
    position_T   each token's place in its own sequence
    length_T     how long its text is, tokens that are still to come included: that of the prompt in prefill
    spans        whose tokens they are
    row_N        the rows whose logits are wanted; a prompt needs its last row only
    """

    token_T: np.ndarray
    position_T: np.ndarray
    length_T: np.ndarray
    spans: tuple[Span, ...]
    row_N: np.ndarray

    def end(self) -> None:
        """Let the caches move on by their tokens: last of all, so that an interrupted step has not happened."""
        for start, stop, cache in self.spans:
            if cache is not None:
                cache.length += stop - start


def make_step(
    parts: Sequence[tuple[Sequence[int], KVCache | None]],
    *,
    all_logits: bool = False,
    lengths: Sequence[int] | None = None,
) -> Step:
    """The step that feeds each cache its next tokens and asks for the logits of each sequence's last one (or of all).

    parts     per sequence the ids that come next, and its cache
    lengths   per sequence how long its text is, what comes in later steps included: while more of a prompt is to come,
              nobody needs its logits. Default: nothing more comes

    Errors: ValueError for a sequence without ids, and for one cache given twice: both would be silently wrong.

    >>> step = make_step([([7, 8, 9], None), ([5], None)])
    >>> step.token_T, step.position_T, step.row_N
    (array([7, 8, 9, 5]), array([0, 1, 2, 0]), array([2, 3]))
    """
    caches = [id(cache) for _, cache in parts if cache is not None]
    if len(set(caches)) < len(caches) or not all(ids for ids, _ in parts):
        raise ValueError("each sequence of a step needs at least one id, and a cache of its own")
    spans, tokens, positions, texts, asked = [], [], [], [], []
    for n, (ids, cache) in enumerate(parts):
        past = cache.length if cache is not None else 0
        length = lengths[n] if lengths is not None else past + len(ids)
        if cache is not None:
            cache.reserve(past + len(ids))
        spans.append(Span(len(tokens), len(tokens) + len(ids), cache))
        tokens.extend(ids)
        positions.extend(range(past, past + len(ids)))
        texts.extend([length] * len(ids))
        if past + len(ids) == length:
            asked.append(len(tokens) - 1)
    row_N = np.arange(len(tokens)) if all_logits else np.array(asked, int)
    return Step(np.array(tokens, int), np.array(positions, int), np.array(texts, int), tuple(spans), row_N)
