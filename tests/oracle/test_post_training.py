"""Preferences, groups and rewards in torch, differentiated by torch, against the coefficients here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backends.gradient import Gradient
from tests.helpers import assert_close, dense_config, moe_config, tokens
from tests.oracle.reference import fused_experts, sharp_weights, transformers_model
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config_json import to_json
from tinyqwen.model import forward
from tinyqwen.train import dpo, grpo, reward
from tinyqwen.train.chats import answered
from tinyqwen.train.reference import frozen
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.oracle

CONFIG = dense_config()
NOISE = 2e-4
PAIRS = [
    dpo.Pair(*(answered(tokens(CONFIG, 4, 9 * n), tokens(CONFIG, 3 + n + k, n + 7 * k)) for k in (1, 2)))
    for n in range(3)
]
SEQUENCES = [example for pair in PAIRS for example in pair]


def answer_log_p(model, example):
    """log p of the answer's tokens in transformers."""
    import torch

    ids = torch.tensor([example.ids])
    log_p = torch.log_softmax(model(ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    return log_p[len(example.prompt) - 1 :]


def ours(backend, config, tensors, lesson, weights=None):
    """The lesson's loss and all gradients."""
    tape = Gradient(backend, tensors)
    out = forward(tape, config, weights or tree(tensors), lesson.step)
    if lesson.token_N is not None:
        out = log_probability(tape, out, lesson.token_N)
    loss, coefficient, figures = lesson.loss(out)
    tape.backward(out, coefficient)
    return loss, tape.gradients, figures


def assert_same_gradients(config, found, model):
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in fused_experts(config, found).items():
        assert_close(gradient, theirs[name].numpy(), NOISE)


def trainable(config, tensors):
    model = transformers_model(config, tensors)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("config", [dense_config(), moe_config()], ids=["dense", "moe"])
def test_dpo(backend, config):
    import torch

    tensors, before = sharp_weights(config, 1), sharp_weights(config, 2)
    model, reference = trainable(config, tensors), transformers_model(config, before)
    with torch.no_grad():
        held = [answer_log_p(reference, example).sum() for example in SEQUENCES]
    gain = [answer_log_p(model, example).sum() - s for example, s in zip(SEQUENCES, held)]
    h = 0.3 * (torch.stack(gain[::2]) - torch.stack(gain[1::2]))
    loss = -torch.nn.functional.logsigmoid(h).mean()
    loss.backward()
    lesson = dpo.lesson(PAIRS, len(PAIRS), frozen(backend, config, tree(before)), 0.3)
    value, gradients, figures = ours(backend, config, tensors, lesson)
    assert value == pytest.approx(loss.item(), rel=1e-4)
    assert figures["margin"] == pytest.approx(h.mean().item(), rel=1e-3, abs=1e-4)
    assert figures["accuracy"] == pytest.approx((h > 0).float().mean().item())
    assert_same_gradients(config, gradients, model)


@pytest.mark.parametrize("weights", ["dapo", "grpo", "dr_grpo"])
def test_grpo(backend, weights):
    """Off-policy, so that some tokens are clipped; with the distance from a reference; against the formula in torch."""
    import torch

    config = dense_config()
    tensors, before = sharp_weights(config, 1), sharp_weights(config, 2)
    model, reference = trainable(config, tensors), transformers_model(config, before)
    rng, settings = np.random.default_rng(0), grpo.Settings(weights=weights, beta=0.2, group=3, answer=9)
    with torch.no_grad():
        held = [answer_log_p(reference, example) for example in SEQUENCES]
        old = [answer_log_p(model, example) + torch.from_numpy(0.3 * rng.standard_normal(len(example.ids) - 4)).float()
               for example in SEQUENCES]  # fmt: skip
    reward_PG = rng.standard_normal((2, 3))
    group = torch.from_numpy(reward_PG)
    advantage = group - group.mean(dim=1, keepdim=True)
    if weights != "dr_grpo":
        advantage = advantage / (group.std(dim=1, keepdim=True) + 1e-4)
    losses = []
    for example, ref, past, A in zip(SEQUENCES, held, old, advantage.flatten().float()):
        log_p = answer_log_p(model, example)
        ratio = torch.exp(log_p - past)
        gain = torch.minimum(ratio * A, ratio.clip(0.8, 1.2) * A)
        losses.append(-gain + 0.2 * (torch.exp(ref - log_p) - (ref - log_p) - 1))
    loss = {
        "dapo": lambda: torch.cat(losses).mean(),
        "grpo": lambda: torch.stack([each.mean() for each in losses]).mean(),
        "dr_grpo": lambda: torch.cat(losses).sum() / (6 * 9),
    }[weights]()
    loss.backward()

    class Given:
        def __init__(self, example, past):
            self.example, self.log_p_N = example, past.numpy()

    judged = grpo.weighted([Given(*each) for each in zip(SEQUENCES, old)], reward_PG, settings)
    lesson = grpo.lesson(judged, len(judged), settings, frozen(backend, config, tree(before)))
    value, gradients, figures = ours(backend, config, tensors, lesson)
    assert value == pytest.approx(loss.item(), rel=1e-4) and figures["away"] > 0
    assert_same_gradients(config, gradients, model)


def test_reward_model_is_that_of_transformers(backend):
    """Qwen2ForSequenceClassification with one label: what it says, and Bradley and Terry's loss through all of it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    config = dense_config()
    tensors = reward.with_score(random_weights(config, 3, scale=0.3), seed=1)
    theirs = Qwen2Config(**json.loads(to_json(config)), attn_implementation="eager", num_labels=1)
    model = Qwen2ForSequenceClassification(theirs).float().eval()
    model.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in tensors.items()}, strict=True)
    said = torch.stack([model(torch.tensor([example.ids])).logits[0, 0] for example in SEQUENCES])
    loss = -torch.nn.functional.logsigmoid(said[::2] - said[1::2]).mean()
    loss.backward()
    value, gradients, _ = ours(backend, config, tensors, reward.lesson(PAIRS, len(PAIRS)), reward.scoring(tensors))
    assert value == pytest.approx(loss.item(), rel=1e-4)
    assert_same_gradients(config, gradients, model)
