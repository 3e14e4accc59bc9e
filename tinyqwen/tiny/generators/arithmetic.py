"""Arithmetic: + and - of up to four digits, x, comparison, parity.

Answers are written as one adds by hand, ones first: each digit then needs only those of its own column and the carry,
and the number is read off at the end. Numbers of one digit are known by heart.

    What is 17 + 25?     2 ones, 4 tens: 42

Source: Lee et al. 2023, "Teaching Arithmetic to Small Transformers": reversed answers are learnt from far fewer examples.
"""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick

PLACES = "one", "ten", "hundred", "thousand", "ten thousand"
DIGITS = (1, 2, 2, 3, 3, 3, 3, 3, 4)  # of a number, one drawn at random
WORDINGS = (
    "What is {}?", "What is {}?", "What is {}?", "{}", "{} = ?", "{} =", "Compute {}.", "Calculate {}.",
    "How much is {}?", "Please compute {}.", "Was ist {}?", "Wie viel ist {}?", "Combien font {} ?", "¿Cuánto es {}?",
)  # fmt: skip
IN_WORDS = {"+": "plus", "-": "minus", "x": "times"}


def number(rng: np.random.Generator) -> int:
    """Uniform in its length first: long numbers would crowd out short ones."""
    digits = pick(rng, DIGITS)
    return int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def written(value: int) -> str:
    """
    >>> written(137), written(-40)
    ('7 ones, 3 tens, 1 hundred: 137', 'negative, 0 ones, 4 tens: -40')
    """
    places = [f"{digit} {place}{'s' * (digit != '1')}" for digit, place in zip(str(abs(value))[::-1], PLACES)]
    return ", ".join(["negative"] * (value < 0) + places) + f": {value}"


def problem(rng: np.random.Generator, task: str, sign: str, a: int, b: int, value: int) -> Item:
    by_heart = a < 10 and b < 10
    between = IN_WORDS[sign].join("  ") if chance(rng, 0.2) else pick(rng, (f" {sign} ", f" {sign} ", sign))
    text = loosely(rng, pick(rng, WORDINGS).format(f"{a}{between}{b}"))
    key = "" if by_heart else f"{a}{sign}{b}"
    return Item(task, ask(text), str(value) if by_heart else written(value), key, rf"(?<![0-9-]){value}$")


def add(rng: np.random.Generator) -> Item:
    a, b = number(rng), number(rng)
    return problem(rng, "add", "+", a, b, a + b)


def subtract(rng: np.random.Generator) -> Item:
    """One in eight has a negative result."""
    a, b = sorted((number(rng), number(rng)), reverse=not chance(rng, 0.125))
    return problem(rng, "subtract", "-", a, b, a - b)


def multiply(rng: np.random.Generator) -> Item:
    """By a number of one digit."""
    a, b = int(rng.integers(10)), int(rng.integers(10 if chance(rng, 0.5) else 100))
    return problem(rng, "multiply", "x", *((a, b) if chance(rng, 0.5) else (b, a)), a * b)


def compare(rng: np.random.Generator) -> Item:
    a, b = number(rng), number(rng)
    word, best = pick(rng, (("larger", max), ("bigger", max), ("smaller", min)))
    text = pick(rng, ("Which is {}, {} or {}?", "Which number is {}: {} or {}?", "What is {}, {} or {}?"))
    return Item("compare", ask(loosely(rng, text.format(word, a, b))), str(best(a, b)), f"{a}?{b}")


def parity(rng: np.random.Generator) -> Item:
    a = number(rng)
    text = pick(rng, ("Is {} even or odd?", "Even or odd: {}?", "Is the number {} odd or even?"))
    return Item("parity", ask(loosely(rng, text.format(a))), "odd" if a % 2 else "even", f"parity {a}")
