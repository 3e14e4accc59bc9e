"""Rollouts: the model answers prompts, several times each, and is told what the answers are worth.

    prompts --generate, G times each--> answers --judge--> rewards

Answers are sampled at temperature 1 from the model as it is now: then their log-probabilities are those that training
sees, and what is learnt from them is learnt about the model itself (on-policy). All sequences are continued together,
each with a cache of its own. The dice follow from the seed and the step's number alone, so that a run can be continued.

An answer that was cut off at the limit has earned nothing, whatever it says: a model must learn to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends import Backend
from tinyqwen.config import Config
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling
from tinyqwen.train.chats import Example, Format, answered, digest, fitting, messages_of
from tinyqwen.train.data import json_lines
from tinyqwen.train.training import Figures
from tinyqwen.train.verifiers import Verifier, rewards, verifier_of
from tinyqwen.weights import Node

AT_ONCE = 256  # sequences


class Task(NamedTuple):
    """A prompt, as ids and in words, and how to tell a good answer (None: a reward model must)."""

    ids: list[int]
    prompt: list[dict[str, Any]]
    verifier: Verifier | None


class Tasks:
    """Prompts to answer. left_out: how many were too long."""

    def __init__(self, tasks: Sequence[Task], length: int):
        self.tasks, self.left_out = fitting(tasks, [len(task.ids) for task in tasks], length)
        self.digest = digest([(task.ids, task.verifier) for task in self.tasks])

    def __len__(self) -> int:
        return len(self.tasks)

    def __str__(self) -> str:
        return f"{len(self):,} prompts" + (f" ({self.left_out:,} longer ones left out)" if self.left_out else "")


def read(paths: Iterable[Path], format: Format, longest: int, *, judged: bool = True) -> Tasks:
    """The tasks of JSON lines {"prompt": ..., "answer": ...} or {"prompt": ..., "verifier": {...}}.

    longest   prompts of more tokens are left out
    judged    whether each needs a verifier; without, lines may have a prompt only

    Errors: UsageError names the line that cannot be used.
    """
    lines = list(chain.from_iterable(map(json_lines, paths)))
    prompts = [messages_of(where, line.get("prompt"), "prompt") for where, line in lines]
    verifiers = [verifier_of(where, line) if judged else None for where, line in lines]
    return Tasks([Task(*each) for each in zip(format.encode(prompts, prompt=True), prompts, verifiers)], longest)


class Policy(NamedTuple):
    """The model that answers: its weights are those that training changes.

    stop_ids     ids that end an answer
    vocabulary   ids from here on have no text
    text         of an answer's ids
    """

    backend: Backend
    config: Config
    weights: Node
    stop_ids: frozenset[int]
    vocabulary: int
    text: Callable[[Sequence[int]], str]


class Answer(NamedTuple):
    """An answer: prompt and answer as an example; log p of its tokens when sampled; its text; whether it ended."""

    example: Example
    log_p_N: np.ndarray
    text: str
    finished: bool


Judge = Callable[[Sequence[Task], Sequence[Answer]], np.ndarray]  # a reward for each answer to its task


def answers(policy: Policy, tasks: Sequence[Task], seed: tuple[int, int], *, tokens: int) -> list[Answer]:
    """An answer to each task: give one several times to have several. `tokens`: of an answer at most."""
    dice = np.random.default_rng(seed).integers(2**62, size=len(tasks)).tolist()
    done = []
    for begin in range(0, len(tasks), AT_ONCE):
        sequences = [
            Running(
                list(task.ids), KVCache(policy.backend, policy.config), Sampling(do_sample=True), policy.config.context,
                one, policy.stop_ids, tokens, log_p=[],
            )
            for task, one in zip(tasks[begin : begin + AT_ONCE], dice[begin:])
        ]  # fmt: skip
        model = policy.backend, policy.config, policy.weights
        for _ in generate(*model, sequences, vocabulary=policy.vocabulary, chunk=4096):
            pass
        done += [answer_of(policy, running) for running in sequences]
    return done


def likeliest(policy: Policy, ids: list[int], *, tokens: int) -> str:
    """The text of the likeliest answer."""
    running = Running(
        list(ids), KVCache(policy.backend, policy.config), Sampling(), policy.config.context, 0, policy.stop_ids, tokens
    )
    for _ in generate(policy.backend, policy.config, policy.weights, [running], vocabulary=policy.vocabulary):
        pass
    return answer_of(policy, running).text


def answer_of(policy: Policy, running: Running) -> Answer:
    said, finished = running.new_ids, running.finish_reason == "stop"
    text = policy.text(said[:-1] if finished else said)
    example = answered(running.ids[: running.prompt_length], said)
    return Answer(example, np.array(running.log_p or [], policy.backend.dtype), text, finished)


def verified(tasks: Sequence[Task], given: Sequence[Answer]) -> np.ndarray:
    """The judge that the tasks' own verifiers are."""
    verifiers = [task.verifier for task in tasks if task.verifier]
    finished_N = np.array([answer.finished for answer in given])
    return rewards(verifiers, [answer.text for answer in given]) * finished_N


def chosen_lines(
    tasks: Sequence[Task], given: Sequence[Answer], reward_PG: np.ndarray, at_least: float
) -> tuple[list[dict], list[dict]]:
    """Rejection sampling: conversations with the best answer, if it is worth so much; pairs of the best and the worst.

    given   of each task as many answers as reward_PG has columns
    """
    chats, pairs = [], []
    for task, reward_G, begin in zip(tasks, reward_PG, range(0, len(given), reward_PG.shape[1])):
        best, worst = (given[begin + int(place)].text for place in (reward_G.argmax(), reward_G.argmin()))
        if reward_G.max() >= at_least:
            chats.append({"messages": [*task.prompt, {"role": "assistant", "content": best}]})
        if reward_G.max() > reward_G.min() and best != worst:
            pairs.append({"prompt": task.prompt, "chosen": best, "rejected": worst})
    return chats, pairs


def figures(reward_PG: np.ndarray, given: Sequence[Answer]) -> Figures:
    """What there is to say of a step's answers: their mean reward; in how many groups they differ; how they end."""
    return {
        "reward": float(reward_PG.mean()), "differ": float((np.ptp(reward_PG, axis=1) > 0).mean()),
        "finished": float(np.mean([answer.finished for answer in given])),
        "length": float(np.mean([len(answer.log_p_N) for answer in given])),
    }  # fmt: skip
