"""One token through a layer as one call: the same bits as the definition's steps, which whoever watches still sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import backends
from backends.cpu.features import detected
from tests.helpers import FORMATS, Recording, decoded, in_format, moe_config
from tinyqwen.blocks.decoder_layer import decoder_layer
from tinyqwen.config import Config, DualChunk
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights

CONFIG = Config(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=14, num_key_value_heads=2,
    head_dim=32, vocab_size=90,
)  # fmt: skip


# Each format of weights and of caches once here, and two as on any processor: so large a kernel takes 10 s to compile.
@pytest.mark.parametrize(("features", "format", "kv"), [
    (detected(), "f32", "f32"), (detected(), "bf16", "bf16"), (detected(), "int8", "int8"),
    (detected(), "int4", "bf16"), (frozenset(), "f32", "f32"), (frozenset(), "bf16", "bf16"),
])  # fmt: skip
@pytest.mark.parametrize("prompt", [3, 1030], ids=["few keys", "keys that threads share"])
def test_the_same_bits_as_step_by_step(features, format, kv, prompt):
    weights = in_format(CONFIG, format)
    for threads in (1, 2):
        backend = backends.get("cpu", features=features, threads=threads)
        watched = Recording(backend)
        alone = decoded(backend, CONFIG, weights, prompt, 5, kv)
        np.testing.assert_array_equal(alone, decoded(watched, CONFIG, weights, prompt, 5, kv), strict=True)
        assert {"rms_norm", "linear", "rope", "attention", "swiglu"} <= set(watched.names)


def test_a_text_that_outgrows_its_chunk():
    """Within a chunk a token is one call; from then on its keys lie in several stretches, and the steps are taken."""
    config = dataclasses.replace(CONFIG, dual_chunk_attention_config=DualChunk(6, 1))
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    assert body_runs(config, weights) == [True, True]
    alone = decoded(backend, config, weights, 3, 5)
    np.testing.assert_array_equal(alone, decoded(Recording(backend), config, weights, 3, 5))
    assert (alone[-1] != decoded(backend, CONFIG, weights, 3, 5)[-1]).any()


def body_runs(config, weights, backend=None, kv="f32"):
    """Whether the body takes a token of that model, or leaves it to the definition."""
    backend = backend or backends.get("cpu")
    cache = KVCache(backend, config, kv)
    answers = []
    body = backend.bodies["decoder_layer"]
    watch = lambda *arrays, **settings: answers.append(body(*arrays, **settings)) or answers[-1]  # noqa: E731
    backend.bodies = {**backend.bodies, "decoder_layer": watch}
    forward(backend, config, weights, make_step([([1], cache)]))
    return [answer is not NotImplemented for answer in answers]


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_of_a_dense_model_is_one_call(format):
    assert body_runs(CONFIG, in_format(CONFIG, format)) == [True, True]


def test_what_it_cannot_do_is_left_to_the_definition():
    sliding = dataclasses.replace(CONFIG, sliding_window=4, layer_types=("full_attention", "sliding_attention"))
    assert body_runs(sliding, in_format(sliding, "f32")) == [True, False]
    many_heads = dataclasses.replace(CONFIG, num_attention_heads=18, num_key_value_heads=1)
    assert body_runs(many_heads, in_format(many_heads, "f32")) == [False, False]
    mixed = in_format(CONFIG, "f32")
    mixed.layers[1].mlp.up_proj.weight = FORMATS["bf16"](mixed.layers[1].mlp.up_proj.weight)
    assert body_runs(CONFIG, mixed) == [True, False]
    fixed = in_format(CONFIG, "f32")
    fixed.layers[0].self_attn.k_proj.weight.flags.writeable = False
    assert body_runs(CONFIG, fixed) == [False, True]
    turned = in_format(CONFIG, "f32")
    turned.layers[0].self_attn.q_proj.weight = np.asfortranarray(turned.layers[0].self_attn.q_proj.weight)
    assert body_runs(CONFIG, turned) == [False, True]
    both = (decoded(backends.get("cpu"), CONFIG, weights, 3, 5) for weights in (turned, in_format(CONFIG, "f32")))
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)
    odd = dataclasses.replace(CONFIG, intermediate_size=100)
    assert body_runs(odd, in_format(odd, "bf16")) == [True, True]
    assert body_runs(odd, in_format(odd, "int8")) == [False, False]
    experts = moe_config()
    assert not all(body_runs(experts, in_format(experts, "f32")))
    without = backends.get("cpu", features=())
    assert body_runs(CONFIG, in_format(CONFIG, "int8"), without) == [False, False]


def test_nothing_is_spoilt():
    """x and the weights are read only; a NaN is not lost."""
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    before = {name: array.copy() for name, array in random_weights(CONFIG, 0).items()}
    decoded(backend, CONFIG, weights, 3, 5)
    np.testing.assert_array_equal(weights.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
    weights.layers[0].input_layernorm.weight[3] = np.nan
    assert np.isnan(decoded(backend, CONFIG, weights, 3, 5)).any()
    assert decoder_layer.cost_of is None  # or a trace would not look inside
