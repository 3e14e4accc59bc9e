"""Every generator: the same items from the same seed, answers that are right, and held-out problems that stay out."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqwen.tiny.generators import TASKS, draw, is_held_out
from tinyqwen.tiny.generators.arithmetic import columns, written
from tinyqwen.tiny.generators.tables import TENS, spoken

seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("task", TASKS)
def test_a_generator_is_a_function_of_its_seed_and_accepts_its_own_answers(task):
    once, again = ([TASKS[task](rng) for _ in range(50)] for rng in (np.random.default_rng(7) for _ in range(2)))
    assert once == again
    for item in once:
        assert item.task == task and item.accepts(item.answer) and not item.accepts("This is wrong.")
        assert [turn["role"] for turn in item.messages] == (["user", "assistant"] * len(item.messages))[
            : len(item.messages)
        ]
        assert item.messages[-1]["role"] == "user" and all(turn["content"] for turn in item.messages)


@pytest.mark.parametrize("task", TASKS)
def test_no_problem_is_both_learnt_and_held_out(task):
    rng = np.random.default_rng(1)
    if task == "unseen":
        with pytest.raises(ValueError, match="not held out"):
            draw(TASKS[task], rng)
        return
    learnt = {draw(TASKS[task], rng).key for _ in range(300)}
    tested = {draw(TASKS[task], rng, held_out=True).key for _ in range(30)}
    assert not learnt & tested and "" not in tested and all(map(is_held_out, tested))


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_sums_and_differences_written_by_hand(a, b):
    """Every column that is written is true arithmetic, and the number read off is right."""
    for sign, value in (("+", a + b), ("-", a - b)):
        text = written(a, b, sign, value)
        assert text.endswith(f": {value}")
        for left, right in re.findall(r"(?<![(-])\b([\d+-]+)=(\d+)", text):
            assert eval(left) == int(right)
    low, high = sorted((a, b))
    for sign, value in (("+", a + b), ("-", high - low)):  # the columns alone give the number
        ends = [step.split("=")[-1] for step in columns(high, low, sign)]
        assert int(ends[-1] + "".join(end[-1] for end in ends[-2::-1])) == value


@given(st.integers(0, 9), st.integers(0, 9999))
def test_products_written_by_hand(a, b):
    ends = [step.split("=")[-1] for step in columns(b, a, "x")]
    assert int(ends[-1] + "".join(end[-1] for end in ends[-2::-1])) == a * b


def test_every_number_is_spoken_differently():
    for language in TENS:
        assert len({spoken(number, language) for number in range(100)}) == 100


@given(seeds)
def test_operations_on_lists_are_what_python_says(seed):
    rng = np.random.default_rng(seed)
    oracles = {
        "copy": lambda items: items, "reverse": lambda items: list(reversed(items)), "sort": sorted,
        "upper": lambda items: [item.upper() for item in items],
        "dedupe": lambda items: sorted(set(items), key=items.index),
    }  # fmt: skip
    for task, oracle in oracles.items():
        item = TASKS[task](rng)
        said = item.messages[0]["content"]
        items = eval(item.key.removeprefix(task)) if item.key else None
        assert items is None or (" ".join(items) in said and item.answer.split() == oracle(items))


@given(seeds)
def test_what_is_looked_up_stands_in_the_text(seed):
    rng = np.random.default_rng(seed)
    for task in ("codes", "pairs", "dialogue", "town"):
        item = TASKS[task](rng)
        if item.answer != "I don't know.":
            value = item.answer.split()[-1].rstrip(".")
            assert any(value in turn["content"] for turn in item.messages if turn["role"] == "user")
