"""What every contestant is asked, and what all of them do alike.

A contestant is a module with

    FORMATS        the weight formats it has
    NEEDS          the packages it imports
    prepare(task)  makes what it reads (a GGUF file, a graph, quantised weights), once, in a process of its own
    load(task)     a model with
                       about                              what it is: version, settings
                       weight_bytes                       of what it loaded
                       token_bytes                        how many of them decoding one token reads
                       prefill(tokens)                    seconds for a prompt of that length in an empty cache
                       decode(depth, tokens, sequences)   seconds of each step: one more token for every sequence,
                                                          when each has `depth` tokens in its cache already

A step ends with the next ids chosen, greedily, from the logits of the last tokens alone. What it takes to fill a cache
is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Task:
    """What to load.

    folder    a model folder in Hugging Face's layout
    exports   where to keep what is made of it (GGUF files, graphs)
    dtype     weight format: f32, bf16, int8 or int4
    threads   how many to use
    options   what this contestant alone understands, to try its settings
    """

    folder: Path
    exports: Path
    dtype: str
    threads: int
    options: dict = field(default_factory=dict)


def some_ids(vocabulary: int, sequences: int, tokens: int) -> np.ndarray:
    """Ids [sequences, tokens], the same ones every time.

    >>> some_ids(100, 2, 3).tolist() == some_ids(100, 2, 3).tolist(), bool(some_ids(10, 5, 5).max() < 10)
    (True, True)
    """
    return np.random.default_rng(0).integers(0, vocabulary, (sequences, tokens))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed_steps(feed: Callable[[np.ndarray, int], np.ndarray], ids: np.ndarray, pasts: range) -> list[float]:
    """Seconds of each step: `feed(ids, past)` gives the next id of every sequence, of which `past` tokens are known.

    >>> len(timed_steps(lambda ids, past: ids[:, 0] + 1, np.zeros((2, 1), int), range(5, 8)))
    3
    """
    seconds = []
    for past in pasts:
        start = time.perf_counter()
        ids = feed(ids, past)[:, None]
        seconds.append(time.perf_counter() - start)
    return seconds
