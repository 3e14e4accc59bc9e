"""The load-balancing loss: its value at balance and at worst, and its gradient, however the step is run."""

from __future__ import annotations

import numpy as np
import pytest

from backends.gradient import Gradient
from tests.gradients import DOUBLE, assert_slopes, double
from tests.helpers import dense_config, moe_config, normal, tokens
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.blocks.moe import route
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.train.balance import Balanced
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.training

SPARSE = moe_config(decoder_sparse_step=1, mlp_only_layers=(), num_hidden_layers=2)


def routed(backend, logits_TE, top_k):
    """The loss of a router with these logits."""
    balanced, E = Balanced(backend, 1.0), logits_TE.shape[1]
    route(balanced, logits_TE.astype(np.float32), np.eye(E, dtype=np.float32), top_k=top_k, normalise=False)
    return balanced.loss()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_costs_as_much_as_there_are_experts_a_token(backend, top_k):
    """Each expert chosen equally often: one row per rotation."""
    row_E = np.arange(8.0)
    assert routed(backend, np.stack([np.roll(row_E, n) for n in range(8)]), top_k) == pytest.approx(top_k, rel=1e-6)


def test_the_worst_is_all_tokens_at_one_expert(backend):
    assert routed(backend, np.tile([40.0, 0, 0, 0], (5, 1)), 1) == pytest.approx(4)


@pytest.mark.parametrize("recompute", [(), {"decoder_layer"}], ids=["kept", "recomputed"])
def test_its_gradient_equals_central_differences(recompute):
    """Of the whole model, where the routers' inputs depend on all that comes before."""
    tensors = {name: double(tensor) for name, tensor in random_weights(SPARSE, scale=0.3).items()}
    step = make_step([(tokens(SPARSE, 7), None), (tokens(SPARSE, 4, 1), None)])
    token_N, coefficient_N = np.array([3, 4]), normal(1, 2).astype(np.float64)

    def run(around=lambda backend: backend):
        balanced = Balanced(DOUBLE, 0.7)
        tape = around(balanced)
        log_p_N = log_probability(tape, forward(tape, SPARSE, tree(tensors), step), token_N)
        return log_p_N, balanced.loss(), tape

    log_p_N, _, tape = run(lambda balanced: Gradient(balanced, tensors, recompute))
    tape.backward(log_p_N, coefficient_N)

    def loss():
        log_p_N, balance, _ = run()
        return log_p_N @ coefficient_N + 0.7 * balance

    rng = np.random.default_rng(1)
    for name, tensor in tensors.items():
        if "layernorm" in name or ".gate." in name or "q_proj" in name or ".experts.0." in name:
            places = [tuple(rng.integers(size) for size in tensor.shape) for _ in range(4)]
            assert_slopes(loss, tensor, tape.gradients[name], places)


def test_steps_are_apart_and_a_dense_model_has_nothing_to_balance(backend):
    balanced = Balanced(backend, 1.0)
    weights, step = tree(random_weights(SPARSE, scale=0.3)), make_step([(tokens(SPARSE, 9), None)])
    forward(balanced, SPARSE, weights, step)
    first = balanced.loss()
    forward(balanced, SPARSE, weights, step)  # no longer watched
    assert balanced.loss() == first > SPARSE.num_experts_per_tok
    balanced.clear()
    dense = dense_config()
    forward(balanced, dense, tree(random_weights(dense)), step)
    assert balanced.loss() == 0
