"""Every gradient, beside its definition, against central differences in float64; and what replaces it, against it."""

from __future__ import annotations

import numpy as np
import pytest

from backends.gradient import leaves, owner, pairs
from tests.gradients import DOUBLE, assert_slopes, double
from tests.helpers import assert_close, normal
from tinyqwen.blocks import attention, cross_entropy, embedding, linear, moe, rms_norm, rope, swiglu
from tinyqwen.step import Span
from tinyqwen.weights import Node

pytestmark = pytest.mark.training

SPANS = (Span(0, 4, None), Span(4, 5, None), Span(5, 11, None))  # three sequences, one of them a single token


def mlp(seed, width, D):
    shapes = {"gate_proj": (width, D), "up_proj": (width, D), "down_proj": (D, width)}
    return Node(**{name: Node(weight=normal(seed + n, *shape)) for n, (name, shape) in enumerate(shapes.items())})


def keys_of(seed):
    return [normal(seed + n, 2, span.stop - span.start, 6) for n, span in enumerate(SPANS)]


def angles():
    angle_TKh = normal(5, 4, 3)
    return np.cos(angle_TKh), np.sin(angle_TKh)


def expert_arguments(weight_seed=3):
    """Seven tokens choose two of four experts, but none the last one."""
    expert_TA = np.array([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1], [0, 1]])
    return normal(1, 7, 5), expert_TA, np.abs(normal(weight_seed, 7, 2)), [mlp(10 * e, 6, 5) for e in range(4)]


# Name -> the operation, its arrays and its settings. Axes differ in size; query heads share KV heads; ids repeat.
CASES = {
    "take_rows": (embedding.take_rows, (normal(1, 7, 3), np.array([2, 5, 2, 2, 0])), {}),
    "linear": (linear.linear, (normal(1, 4, 5), normal(2, 3, 5)), {}),
    "linear with bias": (linear.linear, (normal(1, 4, 5), normal(2, 3, 5), normal(3, 3)), {}),
    "linear to one": (linear.linear, (normal(1, 4, 5), normal(2, 1, 5)), {}),
    "add": (linear.add, (normal(1, 4, 5), normal(2, 4, 5)), {}),
    "rms_norm": (rms_norm.rms_norm, (normal(1, 4, 5), normal(2, 5)), {"eps": 1e-6}),
    "rms_norm with a large eps": (rms_norm.rms_norm, (normal(1, 4, 5), normal(2, 5)), {"eps": 0.7}),
    "rope": (rope.rope, (normal(1, 4, 3, 6), *angles()), {}),
    "swiglu": (swiglu.swiglu, (3 * normal(1, 4, 5), normal(2, 4, 5)), {}),
    "scores": (attention.scores, (normal(1, 2, 3, 4, 6), normal(2, 2, 4, 6)), {}),
    "softmax": (attention.softmax, (2 * normal(1, 2, 3, 5),), {}),
    "mix": (attention.mix, (np.abs(normal(1, 2, 3, 4, 5)), normal(2, 2, 5, 6)), {}),
    "attention": (attention.attention, (normal(1, 11, 6, 6), keys_of(2), keys_of(5)), {"spans": SPANS}),
    "attention, window": (
        attention.attention, (normal(1, 11, 6, 6), keys_of(2), keys_of(5)), {"spans": SPANS, "window": 3},
    ),
    "route": (moe.route, (normal(1, 6, 5), normal(2, 4, 5)), {"top_k": 2, "normalise": False}),
    "route, normalised": (moe.route, (normal(1, 6, 5), normal(2, 4, 5)), {"top_k": 2, "normalise": True}),
    "experts": (moe.experts, expert_arguments(), {}),
    "sigmoid_gate": (moe.sigmoid_gate, (normal(1, 4, 1), normal(2, 4, 5)), {}),
    "log_probability": (cross_entropy.log_probability, (3 * normal(1, 5, 7), np.array([0, 6, 3, 3, 1])), {}),
}  # fmt: skip
CONSTANT = {"rope": (1, 2), "experts": (1,), "take_rows": (1,), "log_probability": (1,)}  # arguments without a gradient
every_case = pytest.mark.parametrize("name", CASES)


def seed_for(out):
    """A gradient of the result that weighs each number differently, and leaves out what no loss can depend on."""
    if isinstance(out, tuple):
        return tuple(seed_for(each) for each in out)
    if out.dtype.kind != "f":
        return None
    seed = normal(99, *out.shape).astype(out.dtype)
    return np.where(np.isfinite(out), seed, 0)


def flat(value) -> list[np.ndarray]:
    if isinstance(value, Node):
        value = list(vars(value).values())
    if isinstance(value, (list, tuple)):
        return [array for each in value for array in flat(each)]
    return [value]


@every_case
def test_equals_central_differences(name):
    operation, arrays, settings = CASES[name]
    arrays = double(arrays)
    seed = seed_for(operation(DOUBLE, *arrays, **settings))
    gradients = operation.gradient_of(DOUBLE, seed, *arrays, **settings)

    def loss():
        out = operation(DOUBLE, *arrays, **settings)
        return sum((a[s != 0] * s[s != 0]).sum() for a, s in zip(flat(out), flat(seed)) if s is not None)

    found = list(pairs(arrays, gradients))
    for array, gradient in found:
        assert_slopes(loss, array, gradient)
    wanted = [
        array for n, each in enumerate(arrays) if n not in CONSTANT.get(operation.name, ()) for array in flat(each)
    ]
    missing = [array for array in wanted if id(array) not in {id(array) for array, _ in found}]
    assert all(
        np.shares_memory(array, unused) for array, unused in zip(missing, flat(arrays[-1])[-3:])
    )  # the idle expert
    assert len(missing) == (3 if name == "experts" else 0)


@every_case
def test_gradients_are_given_away(name, backend):
    """Each has memory of its own, in the backend's type: whoever gets one may add to it."""
    operation, arrays, settings = CASES[name]
    seed = seed_for(operation(backend, *arrays, **settings))
    found = [gradient for _, gradient in pairs(arrays, operation.gradient_of(backend, seed, *arrays, **settings))]
    assert {gradient.dtype for gradient in found} == {backend.dtype}
    memory = [owner(gradient, np) for gradient in (*found, *leaves(arrays))]
    assert len({id(each) for each in memory}) == len(memory)


@every_case
def test_the_backends_gradient_equals_that_of_the_definition(name, backend):
    operation, arrays, settings = CASES[name]
    wide = double(arrays)
    seed = seed_for(operation(DOUBLE, *wide, **settings))
    expected = pairs(wide, operation.gradient_of(DOUBLE, seed, *wide, **settings))
    narrow = tuple(s.astype(np.float32) if s is not None else s for s in seed) if isinstance(seed, tuple) else (
        seed.astype(np.float32)
    )  # fmt: skip
    actual = pairs(arrays, operation.gradient_of(backend, narrow, *arrays, **settings))
    for (_, gradient), (_, wanted) in zip(actual, expected, strict=True):
        assert_close(gradient, wanted, 1e-5)  # sums of a dozen float32 products, a few deep
