"""Losses and all parameter gradients in transformers and here: dense, windowed, sparse, with the balance loss."""

from __future__ import annotations

import numpy as np
import pytest

from backends.gradient import Gradient
from tests.helpers import assert_close, tokens
from tests.oracle.reference import CASES, fused_experts, sharp_weights, transformers_model
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.train.balance import Balanced
from tinyqwen.train.losses import cross_entropy
from tinyqwen.weights import tree

pytestmark = [pytest.mark.oracle, pytest.mark.training]

# Both are float32 and sum in their own order, there and back: measured 1e-5 (a left out term is 1e-2 up).
NOISE = 1e-4
COEFFICIENT = 0.5  # of the balance loss: enough to matter


@pytest.fixture(scope="module")
def reference():
    """Name of a case -> the loss of two sequences and all gradients in transformers; each computed once."""
    done = {}

    def gradients(name):
        if name not in done:
            import torch

            config, seed = CASES[name]
            model = transformers_model(config, sharp_weights(config, seed))
            model.tie_weights()  # loading has put the table in two places
            ids = torch.tensor([tokens(config, 12, 0), tokens(config, 12, 1)])
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            settings = {}
            if config.num_experts:
                model.router_aux_loss_coef = COEFFICIENT
                settings["output_router_logits"] = True
            out = model(ids, labels=ids, **settings)
            out.loss.backward()
            aux = float(out.aux_loss.detach()) if config.num_experts else 0.0
            found = {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}
            done[name] = float(out.loss.detach()), aux, found
        return done[name]

    return gradients


@pytest.mark.parametrize("recompute", [(), {"decoder_layer"}], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_all_gradients_are_equal(backend, reference, case, recompute):
    loss, aux, theirs = reference(case)
    config, seed = CASES[case]
    tensors = sharp_weights(config, seed)
    balanced = Balanced(backend, COEFFICIENT)
    tape = Gradient(balanced, tensors, recompute)
    sequences = [tokens(config, 12, 0), tokens(config, 12, 1)]
    step = make_step([(ids, None) for ids in sequences], all_logits=True)
    next_N = np.concatenate([[*ids[1:], 0] for ids in sequences])
    weight_N = np.tile(np.arange(12) < 11, 2)  # the last token has no next one, but a router that is balanced, too
    log_p_N = log_probability(tape, forward(tape, config, tree(tensors), step), next_N)
    text_loss, coefficient_N = cross_entropy(log_p_N, weight_N)
    assert balanced.loss() == pytest.approx(aux, rel=1e-5)
    assert text_loss + COEFFICIENT * balanced.loss() == pytest.approx(loss, rel=1e-5)
    tape.backward(log_p_N, coefficient_N)
    for name, gradient in fused_experts(config, tape.gradients).items():
        assert_close(gradient, theirs[name], NOISE)
