"""Optimisers: what a step does, on every backend; that they equal each other where they must."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend
from tests.helpers import assert_close, normal
from tinyqwen.train.optimisers.adamw import adam, adamw, clip, start
from tinyqwen.train.optimisers.online_merging import largest, on_dare, on_ties, task_vector
from tinyqwen.train.optimisers.schedules import cosine, wsd

pytestmark = pytest.mark.training

SHAPES = {"embed_tokens.weight": (37, 16), "norm.weight": (16,), "q_proj.bias": (5,), "down_proj.weight": (16, 33)}
SEED = st.integers(0, 2**32 - 1)


def some(seed, scale=1.0):
    return {name: normal(seed + n, *shape) * np.float32(scale) for n, (name, shape) in enumerate(SHAPES.items())}


def trained(backend, steps, **settings):
    """Parameters and state after some steps on gradients of very different sizes."""
    parameters = some(1)
    state = start(backend, parameters)
    for step in range(steps):
        adamw(backend, parameters, some(10 + 5 * step, 10.0 ** (step % 5 - 3)), state, lr=0.01, **settings)
    return parameters, state


# ---- AdamW --------------------------------------------------------------------------------------------------------


def test_equals_the_paper_in_float64(backend):
    """Algorithm 2 of Loshchilov and Hutter, written out once more."""
    parameters, state = trained(backend, 30, weight_decay=0.1)
    for n, (name, theta) in enumerate(some(1).items()):
        theta, m, v = theta.astype(np.float64), 0.0, 0.0
        for step in range(1, 31):
            g = (normal(5 * step + 5 + n, *SHAPES[name]) * np.float32(10.0 ** ((step - 1) % 5 - 3))).astype(np.float64)
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            step_of_adam = 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
            theta = theta - step_of_adam - (0.01 * 0.1 * theta if theta.ndim > 1 else 0)
        assert_close(parameters[name], theta, 2e-6)
        assert_close(state.m[name], m, 1e-6)
        assert_close(state.v[name], v, 1e-6)
    assert state.step == 30 and {array.dtype for array in parameters.values()} == {np.dtype(np.float32)}


@given(SEED, st.floats(1e-3, 1e3))
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(backend, seed, size):
    gradient = normal(seed, 20) * np.float32(size)
    m, v = np.zeros((2, 20), np.float32)
    delta = adam(backend, gradient, m, v, step=1, lr=0.01, betas=(0.9, 0.95), eps=1e-12)
    np.testing.assert_allclose(delta, -0.01 * np.sign(gradient), rtol=1e-5)


def test_a_step_equals_the_definition_on_any_size(backend):
    """Lengths that are no multiple of a vector, and of none."""
    for size in (0, 1, 15, 16, 17, 1000, 1 << 18):
        rows = []
        for each in (backend, Backend(np)):
            gradient, m, v = normal(1, size), normal(2, size), np.abs(normal(3, size))
            delta = adam(each, gradient, m, v, step=7, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
            rows.append((delta, m, v))
        for actual, expected in zip(*rows):
            assert_close(actual, expected, 1e-6)


def test_only_matrices_decay(backend):
    """Without gradients nothing else happens."""
    parameters = some(1)
    zero = {name: np.zeros_like(theta) for name, theta in parameters.items()}
    adamw(backend, parameters, zero, start(backend, parameters), lr=0.1, weight_decay=0.5)
    for name, before in some(1).items():
        np.testing.assert_allclose(parameters[name], before * (0.95 if before.ndim > 1 else 1), rtol=1e-6)


@given(SEED, st.floats(1e-3, 1e3))
def test_clipping_scales_all_alike_and_only_down(backend, seed, limit):
    gradients = some(seed % 1000)
    norm = math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients.values()))
    clipped = some(seed % 1000)
    assert clip(backend, clipped, limit) == pytest.approx(norm, rel=1e-5)
    for name in SHAPES:
        np.testing.assert_allclose(clipped[name], gradients[name] * min(1, limit / norm), rtol=1e-5)


def test_gradients_that_are_not_finite_are_refused_by_name(backend):
    gradients = some(1)
    gradients["norm.weight"][3] = np.nan
    with pytest.raises(FloatingPointError, match=r"of 1 tensors are not finite, the first is norm\.weight"):
        clip(backend, gradients, 1.0)


# ---- schedules ----------------------------------------------------------------------------------------------------


@given(st.integers(2, 5000), st.data())
@pytest.mark.parametrize("schedule", [cosine, wsd])
def test_schedules_rise_then_fall_from_the_peak_to_the_floor(schedule, steps, data):
    warmup, floor = data.draw(st.integers(0, steps // 2)), data.draw(st.floats(0, 0.5))
    rates = [schedule(step, steps, warmup=warmup, floor=floor) for step in range(steps)]
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(1, abs=1e-9) and min(rates) >= 0 and max(rates) <= 1
    assert rates[-1] == pytest.approx(floor) and schedule(steps + 5, steps, warmup=warmup, floor=floor) == rates[-1]


def test_wsd_is_stable_until_it_decays():
    assert {wsd(step, 1001, warmup=10, decay=0.1) for step in range(10, 900)} == {1.0}
    assert wsd(950, 1001, decay=0.1, floor=0) == 0.5


# ---- online merging -----------------------------------------------------------------------------------------------


def merges(keep, alpha, seed=0):
    task = some(3)
    return {
        "OnDARE": on_dare(task, np.random.default_rng(seed), keep=keep, alpha=alpha),
        "OnTIES": on_ties(task, keep=keep, alpha=alpha),
    }


@pytest.mark.parametrize("name", merges(1, 0))
def test_all_of_delta_and_nothing_of_tau_is_adamw_bit_for_bit(backend, name):
    plain, plain_state = trained(backend, 20)
    merged, state = trained(backend, 20, merge=merges(1, 0)[name])
    for tensor in SHAPES:
        np.testing.assert_array_equal(merged[tensor], plain[tensor])
        np.testing.assert_array_equal(state.v[tensor], plain_state.v[tensor])


@pytest.mark.parametrize("name", merges(1, 0))
def test_where_nothing_is_to_be_learnt_tau_is_pushed_along(backend, name):
    """No gradient: each step adds a tau, and does not pull back."""
    parameters, task = some(1), some(3)
    zero = {tensor: np.zeros_like(theta) for tensor, theta in parameters.items()}
    state, merge = start(backend, parameters), merges(1, 0.01)[name]
    for _ in range(5):
        adamw(backend, parameters, zero, state, lr=0.1, weight_decay=0, merge=merge)
    for tensor, before in some(1).items():
        np.testing.assert_allclose(parameters[tensor], before + 0.05 * task[tensor], rtol=1e-4, atol=1e-5)


@given(SEED, st.floats(0.05, 1))
def test_dare_keeps_a_share_of_each_without_rescaling(seed, keep):
    delta, task = np.full(4000, 3, np.float32), {"x": np.full(4000, 7, np.float32)}
    out = on_dare(task, np.random.default_rng(seed), keep=keep, alpha=0.5)("x", delta)
    assert set(np.unique(out)) <= {0.0, 1.5, 3.5, 5.0} and out.dtype == np.float32
    for value in (1.5, 3.5):  # drawn apart: 5 standard deviations
        share = np.isin(out, [value, 5.0]).mean()
        assert abs(share - keep) <= 5 * math.sqrt(keep * (1 - keep) / 4000)
    rescaled = on_dare(task, np.random.default_rng(seed), keep=keep, alpha=0.5, rescale=True)("x", delta)
    np.testing.assert_allclose(rescaled * keep, out, rtol=1e-6)


@given(SEED, st.floats(0.01, 1))
def test_ties_keeps_the_largest(seed, keep):
    x = normal(seed, 20, 10)
    out, count = largest(x, keep), max(1, round(keep * 200))
    assert (out != 0).sum() == count and set(out[out != 0]) <= set(x.ravel())
    assert np.abs(out[out != 0]).min() >= np.sort(np.abs(x), axis=None)[-count]


@given(SEED, st.floats(0, 1))
def test_ties_never_cancels(seed, alpha):
    """Where delta and tau disagree the larger wins whole; so no result is smaller than both."""
    x, tau = normal(seed, 200), normal(seed + 1, 200)
    out = on_ties({"x": tau}, keep=1, alpha=alpha)("x", x)
    larger = np.maximum(np.abs(x * (1 - alpha)), np.abs(tau * alpha))
    assert (np.abs(out) >= larger * (1 - 1e-6)).all() and out.dtype == np.float32


def test_a_task_vector_needs_two_models_of_one_shape():
    assert (task_vector({"a": np.ones(2)}, {"a": np.zeros(2)})["a"] == 1).all()
    for other in ({}, {"a": np.ones(3)}, {"a": np.ones(2), "b": np.ones(1)}):
        with pytest.raises(ValueError, match="is not in both models in one shape"):
            task_vector({"a": np.ones(2)}, other)
