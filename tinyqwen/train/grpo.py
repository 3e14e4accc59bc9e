"""Group relative policy optimisation: answers that are better than their group's mean become likelier, others less.

    A       = (reward - mean of the group) / deviation of the group            the same for all tokens of an answer
    ratio   = p / p when it was sampled
    loss    = sum of weight * ( -min(ratio A, clipped ratio A) + beta * distance from the reference )

No value network as in PPO: the group is its own measure. A group in which all answers are worth the same teaches
nothing; so begin with a model that is right sometimes, in 20 to 60 % of cases. How tokens are weighted:

    dapo       1 / (tokens of all answers)                           a token counts the same everywhere (TRL's default)
    grpo       1 / (answers * tokens of its answer)                  the paper's: an answer counts the same
    dr_grpo    1 / (answers * tokens allowed), A without deviation   neither length nor difficulty is favoured

Data: JSON lines {"prompt": "17 + 25 = ?", "answer": "42"}, or with a "verifier", see `tinyqwen.train.verifiers`; with a
reward model {"prompt": ...} is enough.

Qwen2 itself ends with `online_dpo.py`; this is what its successors took up.

Source: Shao et al. 2024, "DeepSeekMath", section 4.1; Yu et al. 2025, "DAPO"; Liu et al. 2025, "Understanding
R1-Zero-Like Training" (Dr. GRPO); huggingface/trl at f2cd577.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyqwen.train.chats import Example, in_parts, pack
from tinyqwen.train.data import chosen
from tinyqwen.train.losses import advantages, grpo
from tinyqwen.train.online_dpo import Settings as Online
from tinyqwen.train.reference import Reference
from tinyqwen.train.rollouts import Answer, Judge, Policy, Tasks, answers, figures
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Lesson, Lessons, Stage


@dataclass(frozen=True)
class Settings(Online):
    """Those of GRPO."""

    epsilon: float = setting(0.2, "how far the ratio may leave 1 before a token has had enough")
    beta: float = setting(0.0, "weight of staying near the model that training began with")
    weights: str = setting("dapo", "how tokens are weighted", choices=("dapo", "grpo", "dr_grpo"))


class Judged(NamedTuple):
    """An answer to learn from: what it is, log p when it was sampled, its advantage, and the weight of its tokens."""

    example: Example
    old_N: np.ndarray
    advantage: float
    weight: float


def stage(data: Tasks, settings: Settings, policy: Policy, judge: Judge, reference: Reference | None) -> Stage:
    """Of each step some prompts, answered, and the answers with what they are worth.

    reference   needed if settings.beta is not 0
    """

    def of_step(number: int) -> Lessons:
        picked = [data.tasks[n] for n in chosen(len(data), number, settings.batch, settings.seed)]
        tasks = [task for task in picked for _ in range(settings.group)]
        given = answers(policy, tasks, (settings.seed, number), tokens=settings.answer)
        reward_PG = judge(tasks, given).reshape(-1, settings.group)
        judged = [each for each in weighted(given, reward_PG, settings) if each.advantage or settings.beta]
        cuts = in_parts([len(each.example.ids) - 1 for each in judged], settings.part)
        parts = [lesson(judged[part], len(judged), settings, reference) for part in cuts]
        return Lessons([parts] * settings.updates if parts else [], figures(reward_PG, given))

    return of_step


def weighted(given: Sequence[Answer], reward_PG: np.ndarray, settings: Settings) -> list[Judged]:
    """The answers with their advantages and weights."""
    advantage_S = advantages(reward_PG, by_deviation=settings.weights != "dr_grpo").ravel()
    length_S = np.array([len(answer.log_p_N) for answer in given])
    weight_S = {
        "dapo": np.full(len(given), 1 / length_S.sum()),
        "grpo": 1 / (len(given) * length_S),
        "dr_grpo": np.full(len(given), 1 / (len(given) * settings.answer)),
    }[settings.weights]
    return [
        Judged(answer.example, answer.log_p_N, advantage, weight)
        for answer, advantage, weight in zip(given, advantage_S.tolist(), weight_S.tolist())
    ]


def lesson(judged: Sequence[Judged], of: int, settings: Settings, reference: Reference | None) -> Lesson:
    """Some of a step's answers."""
    step, token_N, sequence_N = pack([each.example for each in judged])
    old_N, share = np.concatenate([each.old_N for each in judged]), len(judged) / of
    advantage_N, weight_N = (np.array(x)[sequence_N] for x in zip(*((each.advantage, each.weight) for each in judged)))
    reference_N = reference(step, token_N) if reference and settings.beta else None

    def loss(log_p_N):
        how = {"clip": settings.epsilon, "reference_N": reference_N, "beta": settings.beta}
        value, coefficient_N = grpo(log_p_N, old_N, advantage_N, weight_N, **how)
        away = np.abs(log_p_N - old_N) > np.log1p(settings.epsilon)
        return value, coefficient_N, {"away": float(away.mean()) * share}

    return Lesson(step, token_N, loss, share)
