"""The command that makes the model: it runs from nothing, and a run that was killed becomes the one that was not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from tinyqwen.errors import UsageError
from tinyqwen.runtime import load
from tinyqwen.tiny import make as making
from tinyqwen.tiny import recipe as recipes
from tinyqwen.tiny.recipe import Recipe, at, digest
from tinyqwen.tiny.vocabulary import write_tokenizer
from tinyqwen.train import saved

SHORT = Recipe(scale=1 / 3000)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The whole command, on a smaller model, shorter steps and a tokenizer from less text."""
    config = replace(
        recipes.CONFIG, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, layer_types=(),
    )  # fmt: skip
    monkeypatch.setattr(making, "CONFIG", config)
    monkeypatch.setattr(recipes, "STAGES", tuple(replace(stage, tokens=300) for stage in recipes.STAGES))
    monkeypatch.setattr(making, "write_tokenizer", lambda folder, seed: write_tokenizer(folder, seed, count=500))
    monkeypatch.setattr(making, "SAVE_EVERY", 2)
    monkeypatch.setattr(making, "EXAMINED", 1)
    return tmp_path


def test_it_makes_a_model_that_loads_and_killed_runs_become_the_same(small, monkeypatch):
    folder = making.make(small / "whole", SHORT, threads=1)
    assert load(folder, threads=1).config.vocab_size == 1536
    whole = safetensors.numpy.load_file(saved.found(small / "whole/run")[-1] / "model.safetensors")

    real, left = saved.log, 3

    def killed(*arguments):
        nonlocal left
        real(*arguments)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(saved, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        making.make(small / "killed", SHORT, threads=1)
    making.make(small / "killed", SHORT, threads=1)
    again = safetensors.numpy.load_file(saved.found(small / "killed/run")[-1] / "model.safetensors")
    assert whole.keys() == again.keys() and all(np.array_equal(whole[name], again[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (small / "killed/run/log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, SHORT.steps + 1))


def test_the_sibling_needs_the_model_and_is_a_mixture_of_experts(small, monkeypatch):
    recipe = replace(SHORT, experts=True)
    monkeypatch.setattr(recipes, "EXPERTS_STAGES", tuple(replace(s, tokens=300) for s in recipes.EXPERTS_STAGES))
    with pytest.raises(UsageError, match="not there yet"):
        making.make(small, recipe, threads=1)
    making.make(small, SHORT, threads=1)
    config = load(making.make(small, recipe, threads=1), threads=1).config
    assert (config.num_experts, config.num_experts_per_tok, config.vocab_size) == (8, 2, 1536)


def test_stages_follow_each_other():
    stages = Recipe().stages
    rates = [at(stages, step)[1] for step in range(Recipe().steps)]
    assert rates[0] == 0 and min(rates[1:]) > 0 and max(rates) == rates[stages[0].steps]
    with pytest.raises(ValueError):
        at(stages, Recipe().steps)


def test_only_stages_that_have_begun_decide_whether_a_run_may_go_on(monkeypatch):
    early, late = digest(Recipe(), 0), digest(Recipe(), Recipe().steps)
    monkeypatch.setattr(recipes, "STAGES", (*recipes.STAGES[:-1], replace(recipes.STAGES[-1], tokens=1)))
    assert digest(Recipe(), 0) == early and digest(Recipe(), Recipe().steps) != late


def test_a_finished_run_goes_on_with_a_stage_that_is_new(monkeypatch):
    steps = Recipe().steps
    done = digest(Recipe(), steps)
    monkeypatch.setattr(recipes, "STAGES", (*recipes.STAGES, recipes.STAGES[-1]))
    assert digest(Recipe(), steps) == done != digest(Recipe(), steps + 1)
