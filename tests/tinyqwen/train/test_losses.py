"""Losses and their coefficients, as functions of log-probabilities: central differences, and known identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients import assert_slopes
from tests.helpers import normal
from tinyqwen.train.losses import advantages, cross_entropy, distillation, dpo, grpo

SEED = st.integers(0, 2**32 - 1)
SEQUENCE_N = np.repeat(np.arange(6), [3, 1, 4, 2, 2, 5])  # whose each token is
N = len(SEQUENCE_N)


def log_p(seed):
    return -np.abs(normal(seed, N).astype(np.float64))


def each_loss(seed):
    rng = np.random.default_rng(seed)
    start_N, reference_N = log_p(seed), log_p(seed + 1)
    old_N, advantage_N = start_N + 0.3 * rng.standard_normal(N), rng.standard_normal(6)[SEQUENCE_N]
    weight_N = rng.random(N) * (rng.random(N) > 0.2)
    return start_N, {
        "cross_entropy": lambda x_N: cross_entropy(x_N, weight_N),
        "mean": lambda x_N: cross_entropy(x_N),
        "dpo": lambda x_N: dpo(x_N, reference_N, SEQUENCE_N, beta=0.7),
        "grpo": lambda x_N: grpo(x_N, old_N, advantage_N, weight_N),
        "grpo near the reference": lambda x_N: grpo(
            x_N, old_N, advantage_N, weight_N, reference_N=reference_N, beta=0.04
        ),
    }


@pytest.mark.parametrize("name", each_loss(0)[1])
@given(seed=st.integers(0, 999))
def test_coefficients_are_slopes(name, seed):
    """Of GRPO on either side of the clipping, too."""
    log_p_N, losses = each_loss(seed)
    _, coefficient_N = losses[name](log_p_N)
    assert_slopes(lambda: losses[name](log_p_N)[0], log_p_N, coefficient_N)


@given(SEED)
def test_coefficients_have_the_type_of_the_log_probabilities(seed):
    log_p_N, losses = each_loss(seed)
    for loss in losses.values():
        value, coefficient_N = loss(log_p_N.astype(np.float32))
        assert isinstance(value, float) and coefficient_N.dtype == np.float32


# ---- preferences --------------------------------------------------------------------------------------------------


@given(SEED, st.floats(0.01, 5))
def test_before_the_first_step_a_preference_costs_ln_2(seed, beta):
    loss, coefficient_N = dpo(log_p(seed), log_p(seed), SEQUENCE_N, beta=beta)
    assert loss == pytest.approx(np.log(2))
    chosen_N = SEQUENCE_N % 2 == 0
    np.testing.assert_allclose(coefficient_N, np.where(chosen_N, -beta / 2, beta / 2) / 3)


@given(SEED)
def test_a_preference_already_held_teaches_little_and_its_opposite_much(seed):
    reference_N = log_p(seed)
    better_N = reference_N + np.where(SEQUENCE_N % 2 == 0, 50, -50)
    assert np.abs(dpo(better_N, reference_N, SEQUENCE_N)[1]).max() < 1e-3 * np.abs(
        dpo(2 * reference_N - better_N, reference_N, SEQUENCE_N)[1]
    ).max()  # fmt: skip


def test_a_huge_margin_overflows_nothing():
    chosen_N = np.where(SEQUENCE_N % 2 == 0, 1e4, -1e4)
    with np.errstate(all="raise", under="ignore"):
        assert dpo(chosen_N, -chosen_N, SEQUENCE_N, beta=1)[0] == 0
        assert np.isfinite(dpo(-chosen_N, chosen_N, SEQUENCE_N, beta=1)[0])


# ---- groups -------------------------------------------------------------------------------------------------------


@given(SEED, st.floats(-5, 5))
def test_equal_rewards_teach_nothing(seed, reward):
    for by_deviation in (True, False):
        advantage_PG = advantages(np.full((3, 2), reward), by_deviation=by_deviation)
        assert np.abs(advantage_PG).max() < 1e-9
    _, coefficient_N = grpo(log_p(seed), log_p(seed) - 0.1, np.zeros(N), np.ones(N))
    assert not coefficient_N.any()


@given(SEED)
def test_advantages_compare_within_a_group_only(seed):
    reward_PG = normal(seed, 3, 8).astype(np.float64)
    moved_PG = advantages(5 * reward_PG + np.array([[7.0], [-2], [0]]))
    np.testing.assert_allclose(moved_PG, advantages(reward_PG), rtol=1e-2, atol=1e-3)  # all but the 1e-4 under the line
    np.testing.assert_allclose(advantages(reward_PG).sum(axis=1), 0, atol=1e-12)


@given(SEED)
def test_on_policy_it_is_reinforce(seed):
    log_p_N, advantage_N, weight_N = log_p(seed), normal(seed, N), np.abs(normal(seed + 1, N))
    _, coefficient_N = grpo(log_p_N, log_p_N, advantage_N, weight_N)
    np.testing.assert_allclose(coefficient_N, -advantage_N * weight_N)


@given(SEED)
def test_what_was_raised_enough_is_left_alone_and_what_was_raised_wrongly_is_not(seed):
    old_N = log_p(seed)
    _, raised_N = grpo(old_N + 0.5, old_N, np.ones(N), np.ones(N), clip=0.2)
    _, wrong_N = grpo(old_N + 0.5, old_N, -np.ones(N), np.ones(N), clip=0.2)
    assert not raised_N.any() and (wrong_N > 1).all()


@given(SEED)
def test_the_distance_from_the_reference_is_an_estimate_of_the_divergence(seed):
    """Never negative, and its mean over all tokens, as likely as the model holds them, is KL(model || reference)."""
    rng = np.random.default_rng(seed)
    p_V, q_V = rng.dirichlet(np.ones(9), 2)
    loss, _ = grpo(np.log(p_V), np.log(p_V), np.zeros(9), p_V, reference_N=np.log(q_V), beta=1.0)
    assert loss == pytest.approx(p_V @ np.log(p_V / q_V)) and loss >= 0


@given(SEED)
def test_distillation_has_the_slope_of_the_divergence_in_the_mean(seed):
    """Over all tokens, as likely as the model holds them: d KL(model || teacher) / d logits."""
    rng = np.random.default_rng(seed)
    logits_V, teacher_V = rng.standard_normal(9), np.log(rng.dirichlet(np.ones(9)))

    def divergence():
        p_V = np.exp(logits_V) / np.exp(logits_V).sum()
        return p_V @ (np.log(p_V) - teacher_V)

    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    _, coefficient_V = distillation(np.log(p_V), teacher_V, p_V)
    assert_slopes(divergence, logits_V, coefficient_V - p_V * coefficient_V.sum())
