"""The adder's problems, and the whole table in a short form: interrupted, continued, and written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import get
from tinyqwen.bench import adder, post_training, upcycled
from tinyqwen.train import dpo, grpo, online_dpo
from tinyqwen.train.chats import answered
from tinyqwen.train.initial import initial_weights
from tinyqwen.weights import tree

SIGNS = (adder.PLUS, adder.MINUS)


def numbers(prompt, answer):
    """What a problem says: a, b and the result."""
    read = lambda digits: int("".join(map(str, digits)))  # noqa: E731
    return read(prompt[:3]), read(prompt[4:7]), read(answer[:4][::-1])


@given(st.integers(0, 9999), st.sampled_from(SIGNS), st.booleans())
def test_problems_are_right_and_tests_are_never_seen(seed, sign, test):
    prompt, answer = adder.problem(np.random.default_rng(seed), sign, test=test)
    a, b, result = numbers(prompt, answer)
    assert result == (a + b if sign == adder.PLUS else a - b) and result >= 0
    assert len(prompt) == 8 and len(answer) == adder.ANSWER and answer[-1] == adder.END
    assert ((a * 1009 + b) % 11 == 0) == test


def test_tasks_are_wide_additions_with_their_answers():
    for task in adder.tasks(0, 20):
        assert task.prompt == [] and task.ids[3] == adder.PLUS and task.ids[0] and task.ids[4]
        a, b, result = numbers(task.ids, [int(digit) for digit in task.verifier.what])
        assert a + b == result


def test_accuracy_counts_whole_answers(monkeypatch):
    """A model that has learnt nothing solves nothing; told that every answer is right, all."""
    weights = tree(initial_weights(adder.CONFIG, 0))
    assert adder.accuracy(get("numpy"), weights, adder.PLUS, 10) == 0
    said = adder.generate

    def all_right(backend, config, weights, sequences, **how):
        rng = np.random.default_rng(adder.PLUS)
        for running in sequences:
            running.ids += adder.problem(rng, adder.PLUS, test=True)[1]
        return said(backend, config, weights, [], **how)

    monkeypatch.setattr(adder, "generate", all_right)
    assert adder.accuracy(get("numpy"), weights, adder.PLUS, 10) == 1


@pytest.fixture
def short(monkeypatch):
    """A few steps of everything, from random weights."""
    online = {"steps": 1, "batch": 2, "group": 2, "answer": 5, "warmup": 0}
    monkeypatch.setattr(post_training, "METHODS", {
        "DPO": lambda **how: dpo.Settings(steps=1, batch=2, warmup=0, **how),
        "online DPO": lambda **how: online_dpo.Settings(**online, **how),
        "GRPO": lambda **how: grpo.Settings(**online, **how),
    })  # fmt: skip
    monkeypatch.setattr(post_training, "base_model", lambda backend, seed: initial_weights(adder.CONFIG, seed))
    monkeypatch.setattr(post_training, "sft_model", lambda backend, base, seed: initial_weights(adder.CONFIG, seed + 1))
    pair = dpo.Pair(answered([1, 2], [3]), answered([1, 2], [4]))
    monkeypatch.setattr(post_training, "pairs", lambda *given: dpo.Pairs([pair], 99))
    monkeypatch.setattr(adder, "QUESTIONS", 3)
    monkeypatch.setattr(upcycled, "STEPS", 2)
    monkeypatch.setattr(upcycled, "EVERY", 1)
    monkeypatch.setattr(upcycled, "BATCH", 4)


def test_the_whole_of_it_in_a_short_form(short, tmp_path, monkeypatch):
    backend = get("numpy")
    facts = post_training.measure(backend, tmp_path, [0, 1])
    assert len(facts["aligned"]) == 2 * 9 and len(facts["upcycled"]) == 2 * 6
    assert facts["parameters"] == 130752
    monkeypatch.setattr(post_training, "align", None)  # nothing is done twice
    (tmp_path / "1-upcycled-3.json").unlink()
    again = post_training.measure(backend, tmp_path, [0, 1])
    timeless = lambda runs: [{**run, "seconds": 0} for run in runs]  # noqa: E731
    assert timeless(again["upcycled"]) == timeless(facts["upcycled"]) and again["aligned"] == facts["aligned"]
    first, second = post_training.tables(json.loads(json.dumps(facts)))
    assert first.count("\n") == 1 + 1 + 9 and "| GRPO | OnTIES |" in first
    assert second.count("\n") == 1 + 6 and "| everything anew |" in second
    assert "3 seeds" not in post_training.about(facts) and "2 seeds" in post_training.about(facts)
