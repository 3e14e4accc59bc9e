"""A model of 131,000 parameters that adds and subtracts: small enough to train, and to spoil, in half a minute.

    0 4 7 + 1 2 5 = 2 7 1 0 .          the answer is written from its last digit on, so that carries come in time

Operands have up to three digits; tests ask for such of up to 999 that no training has seen. Addition is the skill that
is rewarded; subtraction is never trained again, so what it loses is the tax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from backends import Backend
from tinyqwen.config import Config
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling
from tinyqwen.train.chats import Example, answered
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.optimisers.named import optimiser
from tinyqwen.train.rollouts import Policy, Task
from tinyqwen.train.settings import Settings
from tinyqwen.train.training import Report, Stage, Training
from tinyqwen.train.verifiers import Verifier
from tinyqwen.weights import Node, tree

Tensors = dict[str, np.ndarray]

PLUS, MINUS, EQUALS, END, VOCABULARY = 10, 11, 12, 13, 14
CONFIG = Config(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
)  # fmt: skip
ANSWER = 5  # tokens
QUESTIONS = 600  # of each sign
BATCH = 128  # problems of a step, while answers are told


def problem(rng: np.random.Generator, sign: int, *, test: bool = False) -> tuple[list[int], list[int]]:
    """A prompt and its answer, as ids. Tests never come up in training.

    >>> problem(np.random.default_rng(1), PLUS)
    ([0, 7, 5, 10, 0, 9, 5, 12], [0, 7, 1, 0, 13])
    """
    while True:
        lengths = (3, 3) if test else rng.integers(1, 4, 2)
        a, b = sorted((int(rng.integers(10**length)) for length in lengths), reverse=sign == MINUS)
        if ((a * 1009 + b) % 11 == 0 and test) or ((a * 1009 + b) % 11 and not test):
            break
    result = a + b if sign == PLUS else a - b
    prompt = [*digits(a, 3)[::-1], sign, *digits(b, 3)[::-1], EQUALS]
    return prompt, [*digits(result, 4), END]


def digits(number: int, count: int) -> list[int]:
    """The last digit first."""
    return [number // 10**place % 10 for place in range(count)]


def examples(seed: int, count: int, plus: float = 0.5) -> list[Example]:
    """Problems with their answers to learn, that part of them additions."""
    rng = np.random.default_rng(seed)
    return [answered(*problem(rng, PLUS if rng.random() < plus else MINUS)) for _ in range(count)]


def tasks(seed: int, count: int) -> list[Task]:
    """Additions to practise, three digits wide, with a verifier in place of the answer."""
    rng = np.random.default_rng(seed)
    made: list[Task] = []
    while len(made) < count:
        prompt, answer = problem(rng, PLUS)
        if prompt[0] and prompt[4]:
            made.append(Task(prompt, [], Verifier("exact", text(answer[:-1]))))
    return made


def text(ids: Sequence[int]) -> str:
    return "".join("0123456789+-=."[token] for token in ids)


def policy(backend: Backend, weights: Node) -> Policy:
    return Policy(backend, CONFIG, weights, frozenset([END]), VOCABULARY, text)


def accuracy(backend: Backend, weights: Node, sign: int, count: int, config: Config = CONFIG) -> float:
    """How many of the test's first problems are solved, the likeliest digits taken."""
    rng = np.random.default_rng(sign)
    asked = [problem(rng, sign, test=True) for _ in range(count)]
    sequences = [
        Running(list(prompt), KVCache(backend, config), Sampling(), config.context, max_new_tokens=ANSWER)
        for prompt, _ in asked
    ]
    for _ in generate(backend, config, weights, sequences, chunk=4096):
        pass
    return float(np.mean([running.new_ids == answer for running, (_, answer) in zip(sequences, asked)]))


# ---- what is done with it --------------------------------------------------------------------------------------------


def learn(
    backend: Backend, config: Config, tensors: Tensors, stage: Stage, settings: Settings, *, task=None,
    until: Callable[[Report], bool] = lambda report: False,
) -> Report:  # fmt: skip
    """Take all steps, or as many as it takes until that holds; the tensors change in place."""
    training = Training(
        backend, config, tensors, start(backend, tensors), stage, settings, update=optimiser(settings, task)
    )
    while training.number < settings.steps:
        report = training.step()
        if until(report):
            break
    return report


def scores(backend: Backend, tensors: Tensors, config: Config = CONFIG) -> dict[str, float]:
    """How many of QUESTIONS are solved, by sign."""
    weights = tree(tensors)
    return {sign: accuracy(backend, weights, token, QUESTIONS, config) for sign, token in (("+", PLUS), ("-", MINUS))}


def copied(tensors: Tensors) -> Tensors:
    return {name: tensor.copy() for name, tensor in tensors.items()}
