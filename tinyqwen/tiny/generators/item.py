"""An item: a question, the answer to learn, and how an answer is judged.

What is held out is decided by a hash of the problem, so that no seed, share or order can ever let a test item into
training. A problem is what makes the task hard, not its wording: of a sum the two numbers, of a fact the paraphrase.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Messages = list[dict[str, str]]
HELD_OUT = 16  # one problem of so many


class Item(NamedTuple):
    """A question with its answer.

    task       its name
    messages   the prompt: ends with the user's turn
    answer     what the model learns to say
    key        the problem; "" where there are so few that all must be learnt: such items are never held out
    expect     an answer is right if this regular expression is found in it; "": it must be `answer`, exactly
    """

    task: str
    messages: Messages
    answer: str
    key: str
    expect: str = ""

    def accepts(self, text: str) -> bool:
        """Whether a model's answer is right.

        >>> item = Item("add", ask("What is 2 + 3?"), "5", "2+3", expect=r"(?<![0-9-])5$")
        >>> item.accepts("It is 5"), item.accepts("-5"), item.accepts("15")
        (True, False, False)
        """
        text = text.strip()
        return bool(re.search(self.expect, text)) if self.expect else text == self.answer


Generator = Callable[[np.random.Generator], Item]


def ask(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def is_held_out(key: str) -> bool:
    """Whether a problem belongs to the tests.

    >>> [key for key in ("1+1", "2+3", "17+25", "312-45", "7x8", "4x9", "") if is_held_out(key)]
    []
    """
    return bool(key) and hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0


def draw(generate: Generator, rng: np.random.Generator, *, held_out: bool = False) -> Item:
    """An item to train with, or one to test with.

    Errors: ValueError if 10,000 items are all of the other kind.
    """
    for _ in range(10_000):
        item = generate(rng)
        if is_held_out(item.key) == held_out:
            return item
    raise ValueError(f"{item.task}: no item that is {'' if held_out else 'not '}held out")


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def loosely(rng: np.random.Generator, text: str) -> str:
    """As people type: sometimes without a capital at the beginning, or without the mark at the end.

    >>> {loosely(np.random.default_rng(seed), "Who are you?") for seed in range(30)}
    {'who are you', 'Who are you', 'who are you?', 'Who are you?'}
    """
    if chance(rng, 0.15):
        text = text[:1].lower() + text[1:]
    if chance(rng, 0.15):
        text = text.rstrip("?.!？。")
    return text
