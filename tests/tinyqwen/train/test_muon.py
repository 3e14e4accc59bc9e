"""Muon: what its polynomial does to singular values, and what a step is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import get
from tests.helpers import dense_config, moe_config, normal
from tinyqwen.train.optimisers.muon import is_hidden, muon, orthogonal
from tinyqwen.weights import random_weights

NUMPY = get("numpy")


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40), st.sampled_from([1e-4, 1.0, 1e4]))
def test_directions_stay_and_lengths_become_one(seed, rows, columns, scale):
    """Against NumPy's own decomposition, for all singular values that are not vanishing beside the largest."""
    x = normal(seed, rows, columns) * np.float32(scale)
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    out = orthogonal(NUMPY, x)
    assert out.dtype == np.float32 and out.shape == x.shape
    found = u.T @ out @ v.T  # diagonal, if the directions have stayed
    large = s > 0.03 * np.sqrt((s**2).sum())
    diagonal = np.diag(found)[large]
    assert (diagonal > 0.6).all() and (diagonal < 1.3).all()
    assert np.abs(found - np.diag(np.diag(found))).max() < 1e-3


def test_a_step():
    """The first goes the gradient's way, turned to lengths of about 1, twice as far as it is four times as tall."""
    parameters, gradients = {"x": np.zeros((8, 2), np.float32)}, {"x": normal(1, 8, 2)}
    momenta = {"x": np.zeros((8, 2), np.float32)}
    muon(NUMPY, parameters, gradients, momenta, lr=0.5)
    np.testing.assert_allclose(momenta["x"], 0.05 * gradients["x"], rtol=1e-5)
    np.testing.assert_allclose(parameters["x"], -0.5 * 2 * orthogonal(NUMPY, gradients["x"]), rtol=1e-4, atol=1e-6)
    muon(NUMPY, parameters, {"x": 0 * gradients["x"]}, {"x": 0 * momenta["x"]}, lr=0.5, weight_decay=0.5)
    np.testing.assert_allclose(parameters["x"], -0.75 * orthogonal(NUMPY, gradients["x"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [dense_config(), moe_config()], ids=["dense", "moe"])
def test_hidden_matrices(config):
    hidden = [name for name, tensor in random_weights(config).items() if is_hidden(name, tensor)]
    assert all("_proj.weight" in name or name.endswith("mlp.gate.weight") for name in hidden)
    assert sum("q_proj" in name for name in hidden) == config.num_hidden_layers
