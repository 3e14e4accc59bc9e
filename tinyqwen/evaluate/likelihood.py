"""How likely does a model hold a given answer? The measure of multiple choice, and of loss on a text.

    log p(answer | context) = sum over the answer's tokens of log p(token | context, tokens before)

A context that many answers share is read once, and so is what one context has in common with the next: questions of a
few-shot test begin with the same examples, often nine tenths of all there is to read. Sorting brings those with the
longest common beginning together; the cache goes back to where they part (`tinyqwen.needle.rewind`).

Source: lm-evaluation-harness, `TemplateLM.loglikelihood`, whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby

import numpy as np

from backends import host
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.conversation import common_length
from tinyqwen.generate import CHUNK, finite
from tinyqwen.model import forward
from tinyqwen.needle import rewind
from tinyqwen.runtime import Runtime
from tinyqwen.step import make_step

Request = tuple[list[int], list[int]]  # a context, and what may follow it; neither is empty


class Reader:
    """Reads texts, and remembers the last one: of the next, it reads what comes after their common beginning."""

    def __init__(self, runtime: Runtime):
        self.runtime, self.cache = runtime, runtime.cache()
        self.tokens_read = 0
        self._read: list[int] = []

    def rows(self, ids: list[int], count: int) -> Iterator:
        """Read a text; the logits of its last `count` tokens, some at a time: each is 600 KB in published models."""
        runtime, cache = self.runtime, self.cache
        runtime.checkpoint.check_unchanged()
        known = min(common_length(ids, self._read), cache.length, len(ids) - count)
        start, self._read = rewind(cache, known), []  # whatever happens meanwhile
        while start < len(ids):
            part = ids[start : start + CHUNK]
            first = max(0, len(ids) - count - start)  # of the rows that are wanted
            step = replace(
                make_step([(part, cache)], lengths=[len(ids)]), row_N=np.arange(min(first, len(part)), len(part))
            )
            model = runtime.backend, runtime.config, runtime.checkpoint.weights
            logits_NV = finite(*model, step, forward(*model, step))
            self.tokens_read += len(part)
            start += len(part)
            if len(logits_NV):
                yield logits_NV
        self._read = ids


def log_likelihoods(
    runtime: Runtime, requests: Sequence[Request], *, watch: Callable[[], None] = lambda: None
) -> list[tuple[float, bool]]:
    """Of each request: log p of the whole continuation, and whether each of its tokens is the likeliest there.

    watch   called after each

    A text that is longer than the runtime's context loses its beginning; the last token is never read.
    """
    reader, found = Reader(runtime), [(0.0, True)] * len(requests)
    requests = [shortened(request, runtime.context) for request in requests]
    order = sorted(range(len(requests)), key=lambda n: requests[n])
    for context, numbers in groupby(order, key=lambda n: requests[n][0]):
        [last_1V] = reader.rows(context, 1)
        for n in numbers:
            found[n] = judged(reader, context, requests[n][1], last_1V)
            watch()
    return found


def shortened(request: Request, room: int) -> Request:
    """The request with as many of its context's last tokens as fit; a continuation's last one takes no room.

    >>> shortened(([1, 2, 3], [4, 5]), 3)
    ([2, 3], [4, 5])
    """
    context, continuation = request
    return context[max(0, len(context) + len(continuation) - 1 - room) :], continuation


def judged(reader: Reader, context: list[int], continuation: list[int], last_1V) -> tuple[float, bool]:
    """A continuation's log p, and whether it is what greedy decoding would say. last_1V: the context's last logits."""
    log_p, greedy, at = 0.0, True, 0
    for logits_NV in chain([last_1V], reader.rows(context + continuation[:-1], len(continuation) - 1)):
        token_N = np.array(continuation[at : at + len(logits_NV)])
        log_p += float(log_probability(reader.runtime.backend, logits_NV, token_N).sum())
        greedy = greedy and bool((host(logits_NV.argmax(axis=-1)) == token_N).all())
        at += len(token_N)
    return log_p, greedy
