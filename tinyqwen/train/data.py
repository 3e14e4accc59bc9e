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
from tinyqwen.step import Step, make_step


def documents(path: Path) -> Iterator[str]:
    """The texts of a file: of FILE.jsonl the "text" of each line, of any other file all of it.

    Errors: UsageError names the file, and the line if there are lines.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not valid UTF-8 (at byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                found = None
            if not isinstance(found, str):
                raise UsageError(f'{path}, line {number}: must be JSON like {{"text": "..."}}')
            yield found


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

    @property
    def digest(self) -> str:
        """Of all ids, to tell other data from these."""
        return hashlib.sha256(self.id_N.tobytes()).hexdigest()[:16]

    def chosen(self, step: int, count: int) -> list[int]:
        """The chunks of a step: all of them once, in random order, before any comes again.

        >>> chunks = Chunks([list(range(1, 60))], end=0, length=10, seed=3)
        >>> [chunks.chosen(step, 4) for step in range(3)]
        [[2, 5, 4, 1], [3, 0, 1, 2], [0, 4, 5, 3]]
        """
        numbers = range(step * count, (step + 1) * count)
        return [int(order(len(self), self.seed, n // len(self))[n % len(self)]) for n in numbers]

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


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
