"""Operations on lists: copy, reverse, sort, upper case, first and last, without repeats, counting.

    Sort: d a k e     -> a d e k
    Reverse: 4 7 1    -> 1 7 4

Lists are of letters, digits or words. Each item is a token, or a blank and a digit: what is learnt is the operation.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick
from tinyqwen.tiny.generators.lookup import SHORT

LONGEST = 10
LETTERS, DIGITS = list(string.ascii_lowercase), list(string.digits)


def unique(items: list[str]) -> list[str]:
    return list(dict.fromkeys(items))


OPERATIONS: dict[str, tuple[Callable[[list[str]], str], tuple[str, ...]]] = {
    "copy": (" ".join, ("Repeat: {}", "Say {}", "Copy: {}", "Repeat after me: {}", "Write {}", "Copy this: {}")),
    "reverse": (
        lambda items: " ".join(items[::-1]),
        ("Reverse: {}", "Reverse {}", "Reverse this list: {}", "Say backwards: {}", "Write {} backwards"),
    ),
    "sort": (lambda items: " ".join(sorted(items)), ("Sort: {}", "Sort {}", "Sort this list: {}", "Put in order: {}")),
    "upper": (
        lambda items: " ".join(items).upper(),
        ("Upper case: {}", "Write in capitals: {}", "Make upper case: {}", "Write {} in upper case"),
    ),
    "first": (lambda items: items[0], ("First of {}", "What is the first of {}?", "First item: {}")),
    "last": (lambda items: items[-1], ("Last of {}", "What is the last of {}?", "Last item: {}")),
    "dedupe": (
        lambda items: " ".join(unique(items)),
        ("Remove repeats: {}", "Without repeats: {}", "Remove duplicates: {}"),
    ),
    "count": (lambda items: str(len(items)), ("How many items: {}", "Count: {}", "How many are in {}?")),
}


def items_of(rng: np.random.Generator, operation: str) -> list[str]:
    if operation == "upper":
        alphabet = LETTERS
    elif operation == "dedupe":
        alphabet = [pick(rng, LETTERS) for _ in range(5)]
    else:
        alphabet = pick(rng, (LETTERS, LETTERS, DIGITS, SHORT))
    return [pick(rng, alphabet) for _ in range(int(rng.integers(1 + (operation != "copy"), LONGEST + 1)))]


def task(operation: str) -> Callable[[np.random.Generator], Item]:
    done, wordings = OPERATIONS[operation]

    def generate(rng: np.random.Generator) -> Item:
        items = items_of(rng, operation)
        text = loosely(rng, pick(rng, wordings).format(" ".join(items)))
        return Item(operation, ask(text), done(items), "" if len(items) < 3 else f"{operation} {items}")

    return generate


def letters(rng: np.random.Generator) -> Item:
    """How many of a letter."""
    alphabet = [pick(rng, LETTERS) for _ in range(3)]
    items = [pick(rng, alphabet) for _ in range(int(rng.integers(3, 9)))]
    one = pick(rng, alphabet) if chance(rng, 0.9) else pick(rng, LETTERS)
    text = pick(rng, ("How many {} are in {}?", "How often is {} in {}?", "Count {} in {}"))
    answer = str(items.count(one))
    return Item("letters", ask(loosely(rng, text.format(one, " ".join(items)))), answer, f"letters {one} {items}")


TASKS = {**{operation: task(operation) for operation in OPERATIONS}, "letters": letters}
