"""The optimiser that settings name: each is what its own file says, and needs what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from backends import get
from tests.helpers import dense_config
from tinyqwen.errors import UsageError
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.optimisers.muon import is_hidden
from tinyqwen.train.optimisers.named import optimiser
from tinyqwen.train.settings import OPTIMISERS, Settings
from tinyqwen.weights import random_weights

NUMPY = get("numpy")


def after(settings, steps=5, task=None):
    """Parameters after some steps on random gradients."""
    parameters = random_weights(dense_config(), 0)
    state, update = start(NUMPY, parameters), optimiser(settings, task)
    for step in range(steps):
        update(NUMPY, parameters, random_weights(dense_config(), 10 + step), state, 0.01)
    assert state.step == steps
    return parameters


@pytest.mark.parametrize("name", ["ondare", "onties"])
def test_merging_all_of_the_step_with_nothing_is_adamw_bit_for_bit(name):
    task = random_weights(dense_config(), 99)
    merged, plain = after(Settings(optimiser=name, keep=1.0, alpha=0.0), task=task), after(Settings())
    for tensor in plain:
        np.testing.assert_array_equal(merged[tensor], plain[tensor])
    some = after(Settings(optimiser=name, keep=0.5, alpha=0.1), task=task)
    assert not np.array_equal(some["model.norm.weight"], plain["model.norm.weight"])


def test_muon_is_for_hidden_matrices_and_adamw_for_the_rest():
    muon, plain = after(Settings(optimiser="muon")), after(Settings())
    for name, tensor in plain.items():
        assert np.array_equal(muon[name], tensor) == (not is_hidden(name, tensor)), name


@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name.startswith("on")])
def test_merging_needs_to_know_what_was_there_before(name):
    with pytest.raises(UsageError, match="name the model before that"):
        optimiser(Settings(optimiser=name))


def test_what_ondare_keeps_follows_from_seed_and_step():
    """So that a run which is continued keeps the same."""
    task = random_weights(dense_config(), 99)
    how = {"optimiser": "ondare", "keep": 0.5}
    first, second, other = (after(Settings(seed=seed, **how), task=task)["model.norm.weight"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
