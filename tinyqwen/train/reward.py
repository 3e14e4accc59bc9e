"""A reward model: the same model with a head of a single row, which says what an answer is worth.

    r        = <score, hidden state of the answer's last token>
    loss     = -log sigmoid( r(chosen) - r(rejected) )                 Bradley and Terry

Data: JSON lines {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}.

It learns from pairs that people or tests have ranked, and then stands in for them where there is nobody to ask: online
DPO and GRPO take it for judge. Only differences between answers to one prompt mean anything. What it has not seen it
judges all the same: a policy that is trained against it long enough finds that out.

Source: Ouyang et al. 2022, equation 1; transformers, Qwen2ForSequenceClassification (`score.weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from backends import Backend
from tinyqwen.config import Config
from tinyqwen.errors import ModelFilesError
from tinyqwen.model import forward
from tinyqwen.step import Step, make_step
from tinyqwen.train.chats import Example, in_parts
from tinyqwen.train.data import chosen
from tinyqwen.train.dpo import Pair, Pairs, preferences
from tinyqwen.train.losses import preference
from tinyqwen.train.rollouts import Answer, Judge, Task
from tinyqwen.train.saved import OTHERS
from tinyqwen.train.settings import Settings as Common
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Lesson, Lessons, Stage
from tinyqwen.weights import Node, tree

SCORE = "score.weight"  # [1, D]


@dataclass(frozen=True)
class Settings(Common):
    """Those of a reward model."""

    lr: float = setting(1e-5, "the peak of the learning rate")
    batch: int = setting(16, "pairs of a step", least=1)
    length: int = setting(2048, "tokens; pairs with a longer answer are left out", least=2)


def with_score(tensors: dict[str, np.ndarray], seed: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """A model's tensors with a head for rewards in place of the one for words: that of the folder, or a random one.

    Errors: ModelFilesError if the folder has none.
    """
    hidden = tensors["model.norm.weight"].shape[0]
    if folder is None:
        score_1D = np.random.default_rng(seed).standard_normal((1, hidden), np.float32) * np.float32(0.02)
    else:
        try:
            score_1D = safetensors.numpy.load_file(folder / OTHERS)[SCORE].reshape(1, hidden)
        except Exception as error:  # the library has an exception of its own, and raises others
            file = folder / OTHERS
            raise ModelFilesError(f"{file}: cannot be used ({error!r:.100}); is it a reward model?") from None
    return {**{name: x for name, x in tensors.items() if name != "lm_head.weight"}, SCORE: score_1D}


def scoring(tensors: dict[str, Any]) -> Node:
    """The tree of such tensors: `model.forward` gives a row's reward where it gave its logits."""
    weights = tree(tensors)
    weights.lm_head = weights.score
    return weights


def ends(examples: Sequence[Example]) -> Step:
    """Whole sequences; asked for is the last row of each."""
    return make_step([(example.ids, None) for example in examples])


def stage(data: Pairs, settings: Settings) -> Stage:
    """Of each step some pairs, in parts."""

    def of_step(number: int) -> Lessons:
        picked = [data.pairs[n] for n in chosen(len(data), number, settings.batch, settings.seed)]
        parts = in_parts([sum(len(example.ids) for example in pair) for pair in picked], settings.part)
        return Lessons([[lesson(picked[part], len(picked)) for part in parts]])

    return of_step


def lesson(pairs: Sequence[Pair], of: int) -> Lesson:
    share = len(pairs) / of

    def loss(reward_N1):
        value, push_N = preference(reward_N1[:, 0].astype(np.float64))
        coefficient_N1 = (push_N * share).astype(reward_N1.dtype)[:, None]
        return value * share, coefficient_N1, preferences(reward_N1[:, 0], share)

    return Lesson(ends([example for pair in pairs for example in pair]), None, loss, share)


def judge(backend: Backend, config: Config, tensors: dict[str, Any]) -> Judge:
    """The judge that such tensors are. What was cut off is worth one less than the worst of all."""
    weights = scoring(tensors)

    def rewards(tasks: Sequence[Task], given: Sequence[Answer]) -> np.ndarray:
        examples = [answer.example for answer in given]
        parts = in_parts([len(example.ids) for example in examples], 8192)
        found = [forward(backend, config, weights, ends(examples[part]))[:, 0] for part in parts]
        reward_N, finished_N = np.concatenate(found), np.array([answer.finished for answer in given])
        return np.where(finished_N, reward_N, reward_N.min() - 1)

    return rewards
