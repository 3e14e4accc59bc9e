"""Pretraining: predict the next token of plain text, everywhere, again and again.

    loss = mean over all tokens of -log p(next token)

A step learns from `tokens` tokens, in parts of `part` at most if they do not fit in memory at once: gradients add up
(`backends.gradient`), weighted so that every token counts the same. Then clipping, then AdamW.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from backends import Backend
from backends.gradient import Gradient
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.model import forward
from tinyqwen.train.balance import Balanced
from tinyqwen.train.data import Chunks
from tinyqwen.train.losses import cross_entropy
from tinyqwen.train.optimisers.adamw import AdamState, adamw, clip
from tinyqwen.train.optimisers.schedules import cosine, wsd
from tinyqwen.weights import tree

SCHEDULES = {"wsd": wsd, "cosine": cosine}


@dataclass(frozen=True)
class Settings:
    """All that decides the result, besides the model to begin with and the data.

    tokens      of a step; a multiple of length
    length      of a chunk, see `tinyqwen.train.data`
    part        tokens at once; 0: all of a step
    recompute   run layers a second time on the way back instead of keeping what they made: less memory, more time
    """

    steps: int = 1000
    tokens: int = 4096
    length: int = 256
    part: int = 0
    recompute: bool = False
    lr: float = 1e-3
    schedule: str = "wsd"
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = {"steps": 1, "tokens": 1, "length": 1}.get(name, 0)
            if not isinstance(value, str) and not least <= value < math.inf:
                raise UsageError(f"{name} must be at least {least}, and finite, is {value}")
        if self.tokens % self.length or self.part % self.length:
            raise UsageError(f"a step of {self.tokens} tokens (and each part) must be whole chunks of {self.length}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, is {self.schedule!r}")


class Report(NamedTuple):
    """One step: its loss, and that of balance if there are experts; the gradients' norm before clipping; seconds."""

    step: int
    loss: float
    balance: float
    norm: float
    lr: float
    tokens: int
    seconds: float


class Pretraining:
    """A model that learns: `tensors` and `state` change in place with every `step`."""

    def __init__(
        self, backend: Backend, config: Config, tensors: dict[str, np.ndarray], state: AdamState, chunks: Chunks,
        settings: Settings,
    ):  # fmt: skip
        self.backend, self.config, self.tensors, self.state = backend, config, tensors, state
        self.chunks, self.settings, self.weights = chunks, settings, tree(tensors)
        self.balanced = Balanced(backend, config.router_aux_loss_coef)
        inner = self.balanced if config.num_experts else backend
        self.tape = Gradient(inner, tensors, {"decoder_layer"} if settings.recompute else ())

    def step(self) -> Report:
        """Errors: FloatingPointError if gradients are not finite; the step has not happened then."""
        settings, begin, number = self.settings, time.perf_counter(), self.state.step
        chosen = self.chunks.chosen(number, settings.tokens // settings.length)
        at_once = (settings.part or settings.tokens) // settings.length
        parts = [chosen[n : n + at_once] for n in range(0, len(chosen), at_once)]
        self.tape.clear()
        losses = [self.learn(part, len(part) / len(chosen)) for part in parts]
        loss, balance = (sum(column) for column in zip(*losses))
        norm = clip(self.backend, self.tape.gradients, settings.clip)
        lr = settings.lr * SCHEDULES[settings.schedule](number, settings.steps, warmup=settings.warmup)
        adamw(
            self.backend, self.tensors, self.tape.gradients, self.state, lr=lr, weight_decay=settings.weight_decay
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        return Report(number + 1, loss, balance, norm, lr, settings.tokens, seconds)

    def learn(self, chunks: list[int], share: float) -> tuple[float, float]:
        """Add a part's gradients; `share` is how much of the step it is."""
        step, token_N = self.chunks.step(chunks)
        self.balanced.clear()
        log_p_N = log_probability(self.tape, forward(self.tape, self.config, self.weights, step), token_N)
        loss, coefficient_N = cross_entropy(log_p_N)
        balance = self.balanced.loss()
        self.balanced.coefficient = self.config.router_aux_loss_coef * share
        self.tape.backward(log_p_N, coefficient_N * log_p_N.dtype.type(share))
        return loss * share, balance * share
