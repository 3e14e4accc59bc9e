"""A mixture of experts made of a dense model: what it must equal, and what of it begins anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, dense_config, logits_of, tokens
from tinyqwen.errors import UsageError
from tinyqwen.train.upcycle import Recipe, Units, expert_units, scale_for_dense, shared_units, upcycle
from tinyqwen.weights import random_weights, tensor_shapes, tree

pytestmark = pytest.mark.training
CONFIG = dense_config()  # F = 28
IDS = tokens(CONFIG, 9)


def dense(seed=0):
    return random_weights(CONFIG, seed, scale=0.3)


def units(F=24, D=5, seed=0):
    rng = np.random.default_rng(seed)
    return Units(*(rng.standard_normal(shape, np.float32) for shape in ((F, D), (F, D), (D, F))))


def logits(backend, config, tensors):
    return logits_of(backend, config, tree(tensors), IDS)


# ---- what equals the dense model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("experts, width", [(4, 14), (4, 7), (3, 28), (7, 8)])
def test_without_anything_new_and_with_all_experts_it_is_the_dense_model(backend, experts, width):
    """A router that knows nothing, no choice, whole copies, no shared expert: experts that straddle copies, too."""
    recipe = Recipe(experts, experts, width, reinitialised=0)
    recipe = recipe.for_model(CONFIG, scale=scale_for_dense(CONFIG, recipe))
    config, tensors = upcycle(CONFIG, dense(), recipe)
    for name, tensor in tensors.items():
        if name.endswith(("mlp.gate.weight", "shared_expert.down_proj.weight")):
            tensor[...] = 0
    assert_close(logits(backend, config, tensors), logits(backend, CONFIG, dense()), 1e-4)


def test_the_shared_expert_alone_is_the_dense_model(backend):
    """Its gate is half open, its down_proj twice as large; wider than the dense part, it still is."""
    for width in (0, 28, 40):
        config, tensors = upcycle(CONFIG, dense(), Recipe(shared_width=width, scale=0))
        for name, tensor in tensors.items():
            if ".experts." in name and "down" in name:
                tensor[...] = 0
        assert_close(logits(backend, config, tensors), logits(backend, CONFIG, dense()), 1e-5)


def test_all_but_the_feed_forward_parts_stays():
    config, tensors = upcycle(CONFIG, dense(), Recipe(experts=5, per_token=3, width=9, shared_width=11))
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    for name, before in dense().items():
        if ".mlp." not in name:
            np.testing.assert_array_equal(tensors[name], before)
            assert not np.shares_memory(tensors[name], before)


# ---- replicate, shuffle, slice ------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
def test_every_unit_comes_about_equally_often_and_whole(experts, width, F, seed):
    source, recipe = units(F), Recipe(experts, 1, width, reinitialised=0)
    cut = expert_units(source, recipe, np.random.default_rng(seed))
    assert [len(expert.gate_ND) for expert in cut] == [width] * experts
    rows = {row.tobytes(): n for n, row in enumerate(source.gate_ND)}
    found = np.concatenate([[rows[row.tobytes()] for row in expert.gate_ND] for expert in cut])
    counts = np.bincount(found, minlength=F)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(np.concatenate([expert.up_ND for expert in cut]), source.up_ND[found])
    np.testing.assert_array_equal(np.concatenate([expert.down_DN for expert in cut], axis=1), source.down_DN[:, found])


def test_the_published_model_needs_slices_across_copies():
    """57B-A14B: nine copies of 18944 units hold 64 experts of 2560 only when they are laid end to end."""
    recipe = Recipe(64, 8, 2560, reinitialised=0)
    cut = expert_units(units(18944, D=1), recipe, np.random.default_rng(0))
    assert len(cut) == 64 and -(-64 * 2560 // 18944) == 9 and 9 * (18944 // 2560) == 63


# ---- begun anew ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["units", "entries"])
@given(fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_as_much_as_was_asked_for_begins_anew(by, fraction, seed):
    source = units(60, D=40)
    recipe = Recipe(3, 1, 20, reinitialised=fraction, by=by)
    kept = expert_units(source, Recipe(3, 1, 20, reinitialised=0), np.random.default_rng(seed))
    part = expert_units(source, recipe, np.random.default_rng(seed))
    for first, second in zip(kept, part):
        if by == "units":
            new = [(a != b).all(axis=axis) for a, b, axis in zip(first, second, (1, 1, 0))]
            assert (new[0] == new[1]).all() and (new[0] == new[2]).all(), "a unit is new as a whole"
            assert new[0].sum() == round(20 * fraction)
            assert not any(((a != b).any(axis=x) & ~new[0]).any() for a, b, x in zip(first, second, (1, 1, 0)))
        else:
            for a, b in zip(first, second):
                assert (a != b).mean() == pytest.approx(fraction, abs=0.1)
            break  # what the dice say differs from there on


def test_new_numbers_are_like_the_old_ones():
    source = Units(*(3 + 2 * matrix for matrix in units(400, D=50)))
    (expert,) = expert_units(source, Recipe(1, 1, 400, reinitialised=1), np.random.default_rng(0))
    for matrix in expert:
        assert matrix.mean() == pytest.approx(3, abs=0.1) and matrix.std() == pytest.approx(2, rel=0.05)


def test_a_narrow_shared_expert_keeps_units():
    source = units(24)
    shared = shared_units(source, 10, np.random.default_rng(0))
    kept = [np.flatnonzero((source.gate_ND == row).all(axis=1))[0] for row in shared.gate_ND]
    np.testing.assert_array_equal(shared.down_DN, 2 * source.down_DN[:, kept])


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"per_token": 9}, "8 experts, not 9"),
        ({"width": -1}, "widths must be at least 0"),
        ({"reinitialised": 1.5}, "must be from 0 to 1"),
        ({"by": "layers"}, "one of units, entries"),
        ({"scale": float("nan")}, "must be"),
    ],
)
def test_recipes_that_cannot_be_are_refused(wrong, complaint):
    with pytest.raises(UsageError, match=complaint):
        Recipe(**wrong)


def test_a_mixture_is_not_upcycled_again():
    config, tensors = upcycle(CONFIG, dense(), Recipe())
    with pytest.raises(UsageError, match="is a mixture of experts already"):
        upcycle(config, tensors, Recipe())
