"""Lessons teach what is asked, and nothing else; a model of two steps goes all the way to the files."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import get
from tinyqwen.bench import long_needle
from tinyqwen.bench.long_needle import CONFIG, DEPTHS, SHORTEST, TIMES, TOKENS, TRAINED, WAYS, lesson, lessons, rates
from tinyqwen.ways import as_config

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, length=st.integers(SHORTEST, TRAINED), letters=st.integers(12, 90))
def test_what_a_lesson_asks_for_stands_before_and_nothing_else_does(seed, length, letters):
    ids, again = lesson(np.random.default_rng(seed), length, letters)
    assert len(ids) == length and len(again) > 0
    kinds, known, asked = [letter // (letters // 3) for letter in ids], {}, []
    for n, (name, value) in enumerate(pairwise(ids)):
        if kinds[n] == 0:
            assert kinds[n + 1] == 1, "behind each key its value"
            asked += [n] if name in known else []
            assert known.setdefault(name, value) == value
    assert kinds.count(0) == kinds.count(1), "no value without a key"
    assert again.tolist() == asked


@given(seed=SEEDS, number=st.integers(0, 10**6), longest=st.integers(SHORTEST, TRAINED))
def test_a_step_is_a_function_of_its_seed_and_never_longer_than_training(seed, number, longest):
    step, value_N = lessons(seed, number, longest, CONFIG.vocab_size)
    assert TOKENS <= len(step.token_T) < TOKENS + longest and step.position_T.max() < longest
    third = CONFIG.vocab_size // 3
    assert (step.token_T[step.row_N] // third == 0).all() and (value_N // third == 1).all()
    same, values = lessons(seed, number, longest, CONFIG.vocab_size)
    assert (same.token_T == step.token_T).all() and (values == value_N).all()


def test_every_distance_of_chunks_was_seen_in_training():
    for way in WAYS:
        chunk = as_config(way, CONFIG).dual_chunk_attention_config
        assert chunk is None or chunk.chunk_size < TRAINED


def test_rates_add_up_over_seeds_and_keep_ways_apart():
    cells = [
        {"way": way, "length": TRAINED * times, "depth": depth, "asked": 4, "hits": WAYS.index(way)}
        for way in WAYS for times in TIMES for depth in DEPTHS
    ]  # fmt: skip
    fewer = [{**cell, "hits": 0} for cell in cells]
    models = [
        {"theta": 10, "seed": 0, "grown": 5, "cells": cells},
        {"theta": 10, "seed": 7, "grown": 5, "cells": fewer},
    ]
    found = rates([*models, {"theta": 10, "seed": 8, "grown": 0, "cells": cells}])  # which has not learnt: left out
    assert [one["way"] for one in found] == list(WAYS)
    for n, one in enumerate(found):
        for rate in (*one["lengths"], *one["depths"]):
            assert rate["seeds"] == {0: n / 4, 7: 0}
            assert rate["accuracy"] == pytest.approx(n / 8) and rate["wilson"][0] <= n / 8 <= rate["wilson"][1]
        assert [rate["asked"] for rate in one["lengths"]] == [8 * len(DEPTHS)] * len(TIMES)


def test_two_steps_a_table_and_both_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(long_needle, "UNDERSTOOD", 100.0)
    facts = long_needle.measure(get("numpy"), [1000], [3], steps=2, questions=1)
    long_needle.report(facts, tmp_path / "new")
    said = capsys.readouterr()
    assert all(way in said.out for way in ("plain", "yarn=4")) and "seed 3: 2 steps" in said.err
    [data] = (tmp_path / "new").glob("needle-*.json")
    kept = json.loads(data.read_text())
    assert (
        kept["steps"] == 2 and kept["models"][0]["seed"] == 3 and kept["config"]["max_position_embeddings"] == TRAINED
    )
    lines = data.with_suffix(".md").read_text().splitlines()
    assert sum(line.startswith("| 1,000 |") for line in lines) == 2 * len(WAYS)
    assert "Left out" not in long_needle.about(facts)
    facts["models"][0]["grown"] = 0
    assert "short lessons: seed 3 at theta 1,000." in long_needle.about(facts)
