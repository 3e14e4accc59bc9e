"""Tiny programs: one line of Python, and what it prints. The answers come from running them."""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, pick
from tinyqwen.tiny.generators.lookup import SHORT

SAFE = {"len": len, "max": max, "min": min, "sorted": sorted, "sum": sum, "abs": abs, "str": str}
QUESTIONS = "What does print({}) print?", "print({})", "What is {} in Python?", "Run print({})", ">>> {}"


def expression(rng: np.random.Generator) -> str:
    a, b, c = (int(rng.integers(10)) for _ in range(3))
    word = pick(rng, SHORT)
    numbers = [int(rng.integers(10)) for _ in range(int(rng.integers(2, 6)))]
    n = int(rng.integers(len(numbers)))
    return pick(rng, (
        f"{a} + {b}", f"{a} * {b}", f"{a} - {b}", f"{a} > {b}", f"{a} == {b}", f"max({a}, {b}, {c})", f"min({a}, {b}, {c})",
        f"len({numbers})", f"{numbers}[{n}]", f"{numbers}[-1]", f"{numbers}[::-1]", f"sorted({numbers})", f"max({numbers})",
        f"'{word}' * {1 + a % 3}", f"'{word}' + '{pick(rng, SHORT)}'", f"{numbers} + [{a}]", f"{a} in {numbers}",
        f"abs({a - b})", f"{a} < {b} < {c}", f"not {a} > {b}", f"min({numbers})", f"{numbers}[0]",
    ))  # fmt: skip


def program(rng: np.random.Generator) -> Item:
    """
    >>> item = program(np.random.default_rng(1))
    >>> item.messages[0]["content"], item.answer
    ('What does print(max([4, 1, 2, 8, 2])) print?', '8')
    """
    code = expression(rng)
    answer = str(eval(code, {"__builtins__": SAFE}))
    question = pick(rng, QUESTIONS)
    if question.startswith((">>>", "What is")) and "'" in code:  # there a text would show its quotes
        question = QUESTIONS[0]
    return Item("programs", ask(question.format(code)), answer, code)
