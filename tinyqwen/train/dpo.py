"""Direct preference optimisation: of two answers to a prompt, make the chosen one likelier and the other less likely.

    h    = beta [ (s_chosen - s_rejected) - (the same of the model before) ]          s = log p of a whole answer
    loss = -log sigmoid(h)

What the model held before is the reference: only changes count, and the more a pair has changed already the less it
pushes. The sum over an answer's tokens is meant, not the mean. It mostly lowers what was rejected: watch `chosen`.

Data: JSON lines {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}; a prompt may also be messages.

Qwen2 begins its alignment with this, offline, on pairs that people or tests have ranked; `online_dpo.py` comes next.
Large models take rates of about 1e-6. In models of some 100,000 parameters 1e-5 to 1e-4 help, and 3e-4 ruins.

Source: Rafailov et al. 2023; Qwen2 technical report, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyqwen.errors import UsageError
from tinyqwen.train.chats import Example, Format, answer_of, answered, digest, fitting, in_parts, messages_of, pack
from tinyqwen.train.data import chosen, json_lines
from tinyqwen.train.losses import dpo, implicit_rewards
from tinyqwen.train.reference import Reference
from tinyqwen.train.settings import Settings as Common
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Figures, Lesson, Lessons, Stage


@dataclass(frozen=True)
class Settings(Common):
    """Those of preference optimisation."""

    lr: float = setting(1e-5, "the peak of the learning rate")
    weight_decay: float = setting(0.0, "of matrices")
    batch: int = setting(16, "pairs of a step", least=1)
    beta: float = setting(0.1, "how much a change of log-probability counts: the larger, the nearer to the reference")
    length: int = setting(2048, "tokens; pairs with a longer answer are left out", least=2)


class Pair(NamedTuple):
    """Two answers to one prompt."""

    chosen: Example
    rejected: Example


class Pairs:
    """Pairs to be learnt. left_out: how many were too long."""

    def __init__(self, pairs: Sequence[Pair], length: int):
        self.pairs, self.left_out = fitting(pairs, [max(len(x.ids) for x in pair) for pair in pairs], length)
        self.digest = digest([[x.ids for x in pair] for pair in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def __str__(self) -> str:
        return f"{len(self):,} pairs" + (f" ({self.left_out:,} longer ones left out)" if self.left_out else "")


def read(paths: Iterable[Path], format: Format, settings: Settings) -> Pairs:
    """The pairs of JSON lines {"prompt": ..., "chosen": ..., "rejected": ...}; a prompt is a text or messages.

    Errors: UsageError names the line that cannot be used, also where the two answers are one.
    """
    prompts, answers = [], []
    for where, line in chain.from_iterable(map(json_lines, paths)):
        prompts.append(messages_of(where, line.get("prompt"), "prompt"))
        answers.append([answer_of(where, line.get(name), name) for name in ("chosen", "rejected")])
        if answers[-1][0] == answers[-1][1]:
            raise UsageError(f"{where}: chosen and rejected are the same answer")
    ids = format.encode(prompts, prompt=True)
    return Pairs(
        [Pair(*(answered(prompt, format.answer(x)) for x in both)) for prompt, both in zip(ids, answers)],
        settings.length,
    )


def stage(data: Pairs, settings: Settings, reference: Reference) -> Stage:
    """Of each step some pairs, in parts."""

    def of_step(number: int) -> Lessons:
        picked = [data.pairs[n] for n in chosen(len(data), number, settings.batch, settings.seed)]
        return Lessons([cut(picked, settings.part, reference, settings.beta)])

    return of_step


def cut(pairs: Sequence[Pair], most: int, reference: Reference, beta: float) -> list[Lesson]:
    """The pairs of a step as lessons of at most so many tokens."""
    parts = in_parts([sum(len(example.ids) - 1 for example in pair) for pair in pairs], most)
    return [lesson(pairs[part], len(pairs), reference, beta) for part in parts]


def lesson(pairs: Sequence[Pair], of: int, reference: Reference, beta: float) -> Lesson:
    """Some of a step's pairs."""
    step, token_N, sequence_N = pack([example for pair in pairs for example in pair])
    reference_N, share = reference(step, token_N), len(pairs) / of

    def loss(log_p_N):
        value, coefficient_N = dpo(log_p_N, reference_N, sequence_N, beta=beta)
        figures = preferences(implicit_rewards(log_p_N, reference_N, sequence_N, beta=beta), share)
        return value * share, coefficient_N * np.float32(share), figures

    return Lesson(step, token_N, loss, share)


def preferences(reward_S, share: float) -> Figures:
    """How far the preferred answers are ahead, and how often; and how the rewards of both have moved."""
    chosen_P, rejected_P = reward_S[::2], reward_S[1::2]
    means = {"accuracy": chosen_P > rejected_P, "margin": chosen_P - rejected_P, "chosen": chosen_P}
    return {name: float(np.mean(x)) * share for name, x in {**means, "rejected": rejected_P}.items()}
