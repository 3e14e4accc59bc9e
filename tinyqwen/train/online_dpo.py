"""Online DPO, Qwen2's last stage: the model answers, the best and the worst of its answers make a pair to learn from.

    for each prompt    sample G answers from the model as it is now
    judge              chosen = the best, rejected = the worst; where all are worth the same there is no pair
    learn              DPO on these pairs, against the model that training began with

Data: JSON lines {"prompt": "17 + 25 = ?", "answer": "42"}, or with a "verifier", see `tinyqwen.train.verifiers`; with a
reward model {"prompt": ...} is enough.

In DPO on a fixed set the pairs are soon about answers that the model would not give any more; here they are always
about what it does. Qwen2 takes a reward model for judge, and the online merging optimizer (`--optimiser ondare`) to
pay less in other skills.

Source: Qwen2 technical report, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyqwen.train.data import chosen
from tinyqwen.train.dpo import Pair, cut
from tinyqwen.train.reference import Reference
from tinyqwen.train.rollouts import Judge, Policy, Tasks, answers, figures
from tinyqwen.train.settings import Settings as Common
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Lessons, Stage


@dataclass(frozen=True)
class Settings(Common):
    """Those of online DPO."""

    steps: int = setting(200, "in all", least=1)
    lr: float = setting(1e-5, "the peak of the learning rate")
    warmup: int = setting(10, "steps in which the rate rises")
    weight_decay: float = setting(0.0, "of matrices")
    batch: int = setting(32, "prompts of a step", least=1)
    group: int = setting(8, "answers to each", least=2)
    answer: int = setting(256, "tokens of an answer at most", least=1)
    length: int = setting(2048, "tokens; longer prompts are left out", least=1)
    updates: int = setting(1, "how often the answers of a step are learnt from", least=1)
    beta: float = setting(0.1, "how much a change of log-probability counts: the larger, the nearer to the reference")


def stage(data: Tasks, settings: Settings, policy: Policy, judge: Judge, reference: Reference) -> Stage:
    """Of each step some prompts, answered, and of their answers the pairs."""

    def of_step(number: int) -> Lessons:
        picked = [data.tasks[n] for n in chosen(len(data), number, settings.batch, settings.seed)]
        tasks = [task for task in picked for _ in range(settings.group)]
        given = answers(policy, tasks, (settings.seed, number), tokens=settings.answer)
        reward_PG = judge(tasks, given).reshape(-1, settings.group)
        pairs = best_and_worst(reward_PG)
        made = [Pair(given[best].example, given[worst].example) for best, worst in pairs]
        parts = cut(made, settings.part, reference, settings.beta)
        return Lessons([parts] * settings.updates if parts else [], figures(reward_PG, given))

    return of_step


def best_and_worst(reward_PG: np.ndarray) -> list[tuple[int, int]]:
    """Of each group the places of its best and its worst answer, the first of equals; none where all are equal.

    >>> best_and_worst(np.array([[0, 1, 1], [2, 2, 2], [5, 3, 4]]))
    [(1, 0), (6, 7)]
    """
    P, G = reward_PG.shape
    both = zip(range(0, P * G, G), reward_PG.argmax(axis=1).tolist(), reward_PG.argmin(axis=1).tolist())
    return [(first + best, first + worst) for first, best, worst in both if best != worst]
