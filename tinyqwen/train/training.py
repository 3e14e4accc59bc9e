"""The loop of all training: pass tokens through the model, ask a loss how their log-probabilities should change, step.

    stage(number)      what step `number` learns                              pretrain, sft, dpo, grpo ...
        |
    forward            log p of the tokens that a lesson is about
    loss               d loss / d log p                                       tinyqwen.train.losses
    backward           d loss / d parameter; those of a step's parts add up   backends.gradient
    update             clipping, then an optimiser                            tinyqwen.train.optimisers

A stage is a function from a step's number to lessons, and nothing else. What it needs to know (data, settings, a seed,
a reference model, or the model itself, to let it talk) it brings along. So a run can be continued from any step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from backends import Backend
from backends.gradient import Gradient
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.step import Step
from tinyqwen.train.balance import Balanced
from tinyqwen.train.optimisers.adamw import AdamState, clip
from tinyqwen.train.optimisers.named import Update, optimiser
from tinyqwen.train.settings import Settings
from tinyqwen.weights import Node, tree

Figures = dict[str, float]  # what else there is to say of a lesson, by name: means over the step


class Lesson(NamedTuple):
    """What passes through the model at once: a step's whole, or a part of it that fits in memory.

    step      sequences, end to end; its rows are those that the loss is about
    token_N   the tokens that came after these rows; None: the head has one row, and the loss is about what it says
    loss      of log_p_N, to (loss, d loss / d log_p_N, figures): this part's share of the step, for parts are added
    share     how much of the step this part is
    """

    step: Step
    token_N: np.ndarray | None
    loss: Callable[[Any], tuple[float, Any, Figures]]
    share: float = 1.0


class Lessons(NamedTuple):
    """What a step learns.

    updates   for each update of the weights (one, unless samples are used more than once) its parts
    figures   what there is to say of the step before it is learnt
    """

    updates: Iterable[list[Lesson]]
    figures: Figures = {}  # noqa: RUF012  (nobody changes it)


Stage = Callable[[int], Lessons]  # from a step's number, counted from 0, to what it learns


class Report(NamedTuple):
    """One step: its loss, and that of balance if there are experts; the gradients' norm before clipping; seconds.

    Of several updates means, but for the tokens.
    """

    step: int
    loss: float
    balance: float
    norm: float
    lr: float
    tokens: int
    seconds: float
    figures: Figures


class Training:
    """A model that learns: `tensors` and `state` change in place with every `step`.

    number    steps that were taken already
    weights   the tree that the model reads, if it is not simply that of the tensors
    update    default: the optimiser that the settings name, if it needs nothing more
    """

    def __init__(
        self, backend: Backend, config: Config, tensors: dict[str, np.ndarray], state: AdamState, stage: Stage,
        settings: Settings, *, number: int = 0, weights: Node | None = None, update: Update | None = None,
    ):  # fmt: skip
        self.backend, self.config, self.tensors, self.state = backend, config, tensors, state
        self.stage, self.settings, self.number = stage, settings, number
        self.weights, self.update = weights or tree(tensors), update or optimiser(settings)
        self.balanced = Balanced(backend, config.router_aux_loss_coef)
        inner = self.balanced if config.num_experts else backend
        self.tape = Gradient(inner, tensors, {"decoder_layer"} if settings.recompute else ())

    def step(self) -> Report:
        """Errors: FloatingPointError if gradients are not finite; the weights are as they were then."""
        begin, lr = time.perf_counter(), self.settings.rate(self.number)
        lessons = self.stage(self.number)
        updates = [self.take(update, lr) for update in lessons.updates]
        self.number += 1
        found = {name: sum(each[name] for each in updates) / len(updates) for name in (updates[0] if updates else ())}
        loss, balance, norm, tokens = (found.pop(name, 0.0) for name in ("loss", "balance", "norm", "tokens"))
        seconds, tokens = time.perf_counter() - begin, round(tokens * len(updates))
        return Report(self.number, loss, balance, norm, lr, tokens, seconds, {**lessons.figures, **found})

    def take(self, update: list[Lesson], lr: float) -> Figures:
        """One update of the weights."""
        self.tape.clear()
        sums: Figures = {}
        for lesson in update:
            for name, value in self.learn(lesson).items():
                sums[name] = sums.get(name, 0.0) + value
        sums["norm"] = clip(self.backend, self.tape.gradients, self.settings.clip)
        self.update(self.backend, self.tensors, self.tape.gradients, self.state, lr)
        return sums

    def learn(self, lesson: Lesson) -> Figures:
        """Add a part's gradients."""
        self.balanced.clear()
        out = forward(self.tape, self.config, self.weights, lesson.step)
        if lesson.token_N is not None:
            out = log_probability(self.tape, out, lesson.token_N)
        loss, coefficient, figures = lesson.loss(out)
        balance = self.balanced.loss() * lesson.share
        self.balanced.coefficient = self.config.router_aux_loss_coef * lesson.share
        self.tape.backward(out, coefficient)
        return {"loss": loss, "balance": balance, "tokens": float(len(lesson.step.token_T)), **figures}
