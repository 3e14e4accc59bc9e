"""Pretraining: predict the next token of plain text, everywhere, again and again.

    loss = mean over all tokens of -log p(next token)

Data: FILE.jsonl holds a document a line, {"text": "..."}; any other file is one document.

A step learns from `tokens` tokens, in parts of `part` at most if they do not fit in memory at once: gradients add up
(`backends.gradient`), weighted so that every token counts the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backends import Backend
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.train.data import Chunks
from tinyqwen.train.losses import cross_entropy
from tinyqwen.train.optimisers.adamw import AdamState
from tinyqwen.train.settings import Settings as Common
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Lesson, Lessons, Stage, Training


@dataclass(frozen=True)
class Settings(Common):
    """Those of pretraining; a step, and each part of it, is whole chunks (see `tinyqwen.train.data`)."""

    tokens: int = setting(4096, "of a step", least=1)
    length: int = setting(256, "of a sequence", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.tokens % self.length or self.part % self.length:
            raise UsageError(f"a step of {self.tokens} tokens (and each part) must be whole chunks of {self.length}")

    @property
    def batch(self) -> int:
        """Chunks of a step."""
        return self.tokens // self.length


def stage(chunks: Chunks, settings: Settings) -> Stage:
    """Of each step some chunks, in parts."""

    def of_step(number: int) -> Lessons:
        chosen = chunks.chosen(number, settings.batch)
        at_once = (settings.part or settings.tokens) // settings.length
        starts = range(0, len(chosen), at_once)
        return Lessons([[lesson(chunks, chosen[n : n + at_once], len(chosen)) for n in starts]])

    return of_step


def lesson(chunks: Chunks, part: list[int], of: int) -> Lesson:
    step, token_N = chunks.step(part)
    return Lesson(
        step, token_N, lambda log_p_N: (*cross_entropy(log_p_N, total=of * chunks.length), {}), len(part) / of
    )


class Pretraining(Training):
    """A model that learns from chunks of text."""

    def __init__(
        self, backend: Backend, config: Config, tensors: dict[str, np.ndarray], state: AdamState, chunks: Chunks,
        settings: Settings,
    ):  # fmt: skip
        super().__init__(backend, config, tensors, state, stage(chunks, settings), settings, number=state.step)
