"""Text as training sees it: one stream of ids, cut into chunks of equal length, in an order that a seed decides.

    documents      <|endoftext|> first document <|endoftext|> second document ...
    chunks         each `length` ids, and for each of these the one that comes next
    sequences      a chunk falls apart where a document begins: none sees another, and each begins at position 0

What a step learns from is a function of the seed and the step's number alone. So a run that was killed continues
exactly, and nothing needs to be remembered but how many steps it took.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tinyqwen.errors import UsageError
from tinyqwen.files import read_text
from tinyqwen.step import Step, make_step


def documents(path: Path) -> Iterator[str]:
    """The texts of a file: of FILE.jsonl the "text" of each line, of any other file all of it.

    Errors: UsageError names the file, and the line if there are lines.
    """
    if path.suffix != ".jsonl":
        yield read_text(path)
        return
    for where, line in json_lines(path):
        if not isinstance(line.get("text"), str):
            raise UsageError(f'{where}: must be JSON like {{"text": "..."}}')
        yield line["text"]


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The objects of a file that holds one a line, and where each stands. Empty lines are left out.

    Errors: UsageError names the file and line.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: U+2028 may stand in JSON
        if line.strip():
            where = f"{path}, line {number}"
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise UsageError(f'{where}: must be JSON like {{"text": "..."}}')
            yield where, found


class Chunks:
    """Chunks of a stream of ids.

    end   the id that stands before each document, and after the last one

    >>> chunks = Chunks([[5, 6, 7], [8]], end=0, length=3, seed=0)
    >>> chunks.id_N.tolist(), len(chunks), chunks.sequences(1)
    ([0, 5, 6, 7, 0, 8, 0], 2, [([7], [0]), ([0, 8], [8, 0])])

    Errors: UsageError if there is not enough for a single chunk.
    """

    def __init__(self, texts, *, end: int, length: int, seed: int):
        parts = [number for ids in texts for number in (end, *ids)]
        self.id_N, self.end, self.length, self.seed = np.array([*parts, end], np.int32), end, length, seed
        if len(self) < 1:
            raise UsageError(f"the data are {len(self.id_N)} tokens: too few for a sequence of {length}")

    def __len__(self) -> int:
        return (len(self.id_N) - 1) // self.length

    def __str__(self) -> str:
        return f"{len(self.id_N):,} tokens of text"

    @property
    def digest(self) -> str:
        """Of all ids, to tell other data from these."""
        return hashlib.sha256(self.id_N.tobytes()).hexdigest()[:16]

    def chosen(self, step: int, count: int) -> list[int]:
        """The chunks of a step, see `chosen`."""
        return chosen(len(self), step, count, self.seed)

    def sequences(self, chunk: int) -> list[tuple[list[int], list[int]]]:
        """Its sequences: ids, and for each the one that comes next."""
        begin = chunk * self.length
        ids, after = self.id_N[begin : begin + self.length], self.id_N[begin + 1 : begin + self.length + 1]
        cuts = [0, *(1 + np.flatnonzero(ids[1:] == self.end)).tolist(), self.length]
        return [(ids[a:b].tolist(), after[a:b].tolist()) for a, b in pairwise(cuts)]

    def step(self, chunks: list[int]) -> tuple[Step, np.ndarray]:
        """These chunks packed, and the tokens that come next."""
        parts = [each for chunk in chunks for each in self.sequences(chunk)]
        packed = make_step([(ids, None) for ids, _ in parts], all_logits=True)
        return packed, np.array([token for _, after in parts for token in after])


def chosen(total: int, step: int, count: int, seed: int) -> list[int]:
    """What a step learns of `total` things, `count` in a step: all of them once, in random order, before any again.

    >>> [chosen(6, step, 4, seed=3) for step in range(3)]
    [[2, 5, 4, 1], [3, 0, 1, 2], [0, 4, 5, 3]]
    """
    numbers = range(step * count, (step + 1) * count)
    return [int(order(total, seed, n // total)[n % total]) for n in numbers]


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
