"""The whole, unchanged model under the gradient wrapper: every kind of layer, against central differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends.gradient import Gradient
from tests.gradients import DOUBLE, assert_slopes, double
from tests.helpers import CONFIGS, assert_close, dense_config, moe_config, tokens
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.training

# Attention in parts (long contexts) has no gradients yet, and says so: it is no way to train.
WHOLE = {name: each for name, each in CONFIGS.items() if not getattr(each, "dual_chunk_attention_config", None)}
ALL = {**WHOLE, "moe-tied": moe_config(tie_word_embeddings=True)}
every_config = pytest.mark.parametrize("config", ALL.values(), ids=ALL)


def batch(config, *lengths):
    """Packed sequences with the tokens that come next, and a coefficient for each, some of them 0."""
    sequences = [tokens(config, length + 1, seed) for seed, length in enumerate(lengths)]
    step = make_step([(ids[:-1], None) for ids in sequences], all_logits=True)
    token_N = np.array([token for ids in sequences for token in ids[1:]])
    rng = np.random.default_rng(7)
    return step, token_N, rng.standard_normal(len(token_N)) * (rng.random(len(token_N)) > 0.3)


def gradients_of(backend, config, tensors, parts, recompute=()):
    """The log-probabilities, and the gradients of their sum with those coefficients, over several steps."""
    tape, weights, out = Gradient(backend, tensors, recompute), tree(tensors), []
    for step, token_N, coefficient_N in parts:
        log_p_N = log_probability(tape, forward(tape, config, weights, step), token_N)
        tape.backward(log_p_N, coefficient_N.astype(log_p_N.dtype))
        out.append(log_p_N)
    return np.concatenate(out), tape.gradients


@every_config
def test_all_gradients_equal_central_differences(config):
    """Five entries of every tensor, and all entries together along random directions."""
    tensors, (step, token_N, coefficient_N) = double_weights(config), batch(config, 7, 1, 6)
    weights, rng = tree(tensors), np.random.default_rng(1)
    _, gradients = gradients_of(DOUBLE, config, tensors, [(step, token_N, coefficient_N)])

    def loss():
        return log_probability(DOUBLE, forward(DOUBLE, config, weights, step), token_N) @ coefficient_N

    assert set(gradients) == set(tensors)
    for name, tensor in tensors.items():
        places = [tuple(rng.integers(size) for size in tensor.shape) for _ in range(5)]
        assert_slopes(loss, tensor, gradients[name], places)
    for _ in range(3):
        direction = {name: rng.standard_normal(tensor.shape) / 10 for name, tensor in tensors.items()}
        along = np.zeros(())

        def loss_along(along=along, direction=direction):
            moved = {name: tensor + along * direction[name] for name, tensor in tensors.items()}
            return log_probability(DOUBLE, forward(DOUBLE, config, tree(moved), step), token_N) @ coefficient_N

        expected = np.array(sum((gradients[name] * direction[name]).sum() for name in tensors))
        assert_slopes(loss_along, along, expected)


def double_weights(config):
    return {name: double(tensor) for name, tensor in random_weights(config, scale=0.3).items()}


@every_config
def test_every_backend_has_the_same_gradients(backend, config):
    parts = [batch(config, 9, 4)]
    _, expected = gradients_of(DOUBLE, config, double_weights(config), parts)
    _, actual = gradients_of(backend, config, random_weights(config, scale=0.3), parts)
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, 2e-4)  # up to four layers of float32 there and back


@every_config
def test_a_batch_in_parts_has_the_gradients_of_the_whole(config):
    """Packed, one by one, and with the layers run a second time: sums in another order, nothing else."""
    tensors, (step, token_N, coefficient_N) = double_weights(config), batch(config, 6, 3, 5)
    log_p_N, whole = gradients_of(DOUBLE, config, tensors, [(step, token_N, coefficient_N)])
    parts = []
    for span in step.spans:
        own = slice(span.start, span.stop)
        alone = make_step([(step.token_T[own].tolist(), None)], all_logits=True)
        parts.append((alone, token_N[own], coefficient_N[own]))
    for recompute in ((), {"decoder_layer"}):
        alone_N, added = gradients_of(DOUBLE, config, tensors, parts, recompute)
        assert_close(alone_N, log_p_N, 1e-12)
        for name in tensors:
            assert_close(added[name], whole[name], 1e-11)


def test_recomputing_keeps_the_arguments_of_layers_only():
    config = dense_config()
    tensors, (step, token_N, _) = double_weights(config), batch(config, 8)
    lengths = []
    for recompute in ((), {"decoder_layer"}):
        tape = Gradient(DOUBLE, tensors, recompute)
        log_probability(tape, forward(tape, config, tree(tensors), step), token_N)
        lengths.append(len(tape.tape))
    assert lengths == [5 + 15 * config.num_hidden_layers, 5 + config.num_hidden_layers]


def test_rows_without_logits_are_not_paid_for():
    """A step that asks for the rows with coefficients only has the same gradients."""
    config = dense_config()
    tensors, (step, token_N, coefficient_N) = double_weights(config), batch(config, 8, 5)
    kept_N = np.flatnonzero(coefficient_N)
    _, whole = gradients_of(DOUBLE, config, tensors, [(step, token_N, coefficient_N)])
    few = replace(step, row_N=kept_N), token_N[kept_N], coefficient_N[kept_N]
    _, kept = gradients_of(DOUBLE, config, tensors, [few])
    for name in tensors:
        assert_close(kept[name], whole[name], 1e-12)


def test_training_through_a_cache_is_refused():
    """A cache is memory of its own: what is copied into it would be lost to the gradient without a word."""
    config = dense_config()
    tensors = double_weights(config)
    tape = Gradient(DOUBLE, tensors)
    with pytest.raises(TypeError, match="update_cache has no gradient"):
        forward(tape, config, tree(tensors), make_step([([1, 2, 3], KVCache(DOUBLE, config))]))
