"""Arithmetic: + and - of up to four digits, x by one digit, comparison, parity.

Answers are worked out as by hand, column by column from the ones, and the number is read off at the end. Each column
writes its digits down before it adds them: a model first learns to find them, and what to do with them after that. Were
only the sum written, nothing could be learnt before everything is. Numbers of one digit are known by heart.

    What is 17 + 25?     7+5=12, 1+2+1=4: 42
    What is 52 - 17?     12-7=5, 5-1-1=3: 35

Source: Lee et al. 2023, "Teaching Arithmetic to Small Transformers": the more of the work is written, the fewer examples.
"""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick

DIGITS = (1, 2, 2, 3, 3, 3, 3, 3, 4)  # of a number, one drawn at random
WORDINGS = (
    "What is {}?", "What is {}?", "What is {}?", "{}", "{} = ?", "{} =", "Compute {}.", "Calculate {}.",
    "How much is {}?", "Please compute {}.", "What's {}?", "Can you compute {}?", "Solve {}", "Result of {}?",
    "{} equals?", "Was ist {}?", "Wie viel ist {}?", "Combien font {} ?", "¿Cuánto es {}?",
)  # fmt: skip
IN_WORDS = {"+": "plus", "-": "minus", "x": "times"}


def number(rng: np.random.Generator) -> int:
    """Uniform in its length first: long numbers would crowd out short ones."""
    length = pick(rng, DIGITS)
    return int(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def digits(value: int) -> list[int]:
    """Ones first."""
    return [int(digit) for digit in str(value)[::-1]]


def columns(a: int, b: int, sign: str) -> list[str]:
    """The work, a column at a time; a is not smaller than b if they are subtracted, and b has one digit if multiplied.

    >>> columns(95, 7, "+"), columns(105, 98, "-"), columns(25, 7, "x")
    (['5+7=12', '9+1=10'], ['15-8=7', '10-9-1=0', '1-1=0'], ['7x5=35', '7x2+3=17'])
    """
    work, carry = [], 0
    length = max(len(digits(a)), len(digits(b))) if sign != "x" else len(digits(a))
    for place in range(length):
        here, there = (number[place] if place < len(number) else None for number in (digits(a), digits(b)))
        carried = carry
        if sign == "x":
            value, said = b * (here or 0) + carry, [f"{b}x{here}"]
            carry = value // 10
        elif sign == "+":
            said = [str(digit) for digit in (here, there) if digit is not None]
            value = sum(map(int, said)) + carry
            carry = value // 10
        else:
            carry = int((here or 0) < (there or 0) + carried)
            said = [str((here or 0) + 10 * carry), *([] if there is None else [str(there)])]
            value = (here or 0) + 10 * carry - (there or 0) - carried
        said += ["1" if sign != "x" else str(carried)] * bool(carried)
        text = ("-" if sign == "-" else "+").join(said)
        work.append(text if text == str(value) else f"{text}={value}")
    return work


def written(a: int, b: int, sign: str, value: int) -> str:
    """
    >>> written(17, 25, "+", 42), written(17, 25, "-", -8), written(7, 25, "x", 175)
    ('7+5=12, 1+2+1=4: 42', '-(25-17), 15-7=8, 2-1-1=0: -8', '7x5=35, 7x2+3=17: 175')
    """
    swapped = [f"-({b}-{a})"] * (value < 0)
    if swapped or (sign == "x" and b > a):
        a, b = b, a
    return f"{', '.join(swapped + columns(a, b, sign))}: {value}"


def problem(rng: np.random.Generator, task: str, sign: str, a: int, b: int, value: int) -> Item:
    by_heart = a < 10 and b < 10
    between = IN_WORDS[sign].join("  ") if chance(rng, 0.2) else pick(rng, (f" {sign} ", f" {sign} ", sign))
    text = loosely(rng, pick(rng, WORDINGS).format(f"{a}{between}{b}"))
    key = "" if by_heart else f"{a}{sign}{b}"
    return Item(task, ask(text), str(value) if by_heart else written(a, b, sign, value), key, rf"(?<![0-9-]){value}$")


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
