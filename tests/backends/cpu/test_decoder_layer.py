"""Tokens through all layers as one call: the same bits as the definition's steps, which whoever watches still sees."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest

import backends
from backends.cpu.features import detected
from tests.helpers import FORMATS, Recording, decoded, in_format, moe_config
from tinyqwen.blocks.decoder_layer import decoder_layer
from tinyqwen.config import Config, DualChunk
from tinyqwen.kv_cache import BFLOAT16, KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

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


def together(backend, config, weights, prompts, count, kv="bf16"):
    """The logits of tokens of several sequences in one step, which grow, and of which each step leaves another out."""
    caches = [KVCache(backend, config, kv) for _ in prompts]
    for n, (cache, prompt) in enumerate(zip(caches, prompts)):
        forward(backend, config, weights, make_step([([id % 90 for id in range(n, n + prompt)], cache)]))
    steps = (make_step([([n + t], caches[n]) for n in range(len(prompts)) if n != t % 5]) for t in range(count))
    return np.concatenate([forward(backend, config, weights, step) for step in steps])


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_of_each_sequence_gives_the_same_bits_as_step_by_step(format):
    prompts, weights = [3, 70, 254, 1, 17], in_format(CONFIG, format)  # one outgrows its memory
    for threads in (1, 2):
        backend = backends.get("cpu", threads=threads)
        watched = together(Recording(backend), CONFIG, weights, prompts, 7)
        np.testing.assert_array_equal(together(backend, CONFIG, weights, prompts, 7), watched)


def test_several_sequences_are_one_call_where_their_caches_are_pairs():
    if "bf16" not in detected():
        pytest.skip("this processor does not multiply pairs of bfloat16")
    weights, without = in_format(CONFIG, "f32"), backends.get("cpu", features=())
    assert body_runs(CONFIG, weights, kv="bf16", sequences=3) == AT_ONCE
    assert body_runs(CONFIG, weights, kv="int8", sequences=3) == NOT_AT_ALL
    assert body_runs(CONFIG, weights, without, kv="bf16", sequences=3) == NOT_AT_ALL
    many_heads = dataclasses.replace(CONFIG, num_attention_heads=18)
    assert body_runs(many_heads, in_format(many_heads, "f32"), kv="bf16", sequences=2) == NOT_AT_ALL
    narrow = dataclasses.replace(CONFIG, hidden_size=8)  # fewer outputs than a tile has rows
    assert body_runs(narrow, in_format(narrow, "f32"), kv="bf16", sequences=2) == NOT_AT_ALL


def test_a_text_that_outgrows_its_chunk():
    """Within a chunk a token is one call; from then on its keys lie in several stretches, and the steps are taken."""
    config = dataclasses.replace(CONFIG, dual_chunk_attention_config=DualChunk(6, 1))
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    assert body_runs(config, weights) == AT_ONCE
    alone = decoded(backend, config, weights, 3, 5)
    np.testing.assert_array_equal(alone, decoded(Recording(backend), config, weights, 3, 5))
    assert (alone[-1] != decoded(backend, CONFIG, weights, 3, 5)[-1]).any()


def body_runs(config, weights, backend=None, kv="f32", sequences=1):
    """Whether the body for all layers takes a token of that model, and if not, whether that for one takes each."""
    backend = backend or backends.get("cpu")
    caches, answers = [KVCache(backend, config, kv) for _ in range(sequences)], []

    def watched(body):
        return lambda *arrays, **settings: answers.append(body(*arrays, **settings)) or answers[-1]

    names = "decoder_layers", "decoder_layer"
    backend.bodies = {**backend.bodies, **{name: watched(backend.bodies[name]) for name in names}}
    forward(backend, config, weights, make_step([([1], cache) for cache in caches]))
    return [answer is not NotImplemented for answer in answers]


AT_ONCE, NOT_AT_ALL = [True], [False, False, False]


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_of_a_dense_model_is_one_call(format):
    assert body_runs(CONFIG, in_format(CONFIG, format)) == AT_ONCE


def test_what_it_cannot_do_is_left_to_the_definition():
    sliding = dataclasses.replace(CONFIG, sliding_window=4, layer_types=("full_attention", "sliding_attention"))
    assert body_runs(sliding, in_format(sliding, "f32")) == [False, True, False]
    many_heads = dataclasses.replace(CONFIG, num_attention_heads=18, num_key_value_heads=1)
    assert body_runs(many_heads, in_format(many_heads, "f32")) == NOT_AT_ALL
    mixed = in_format(CONFIG, "f32")
    mixed.layers[1].mlp.up_proj.weight = FORMATS["bf16"](mixed.layers[1].mlp.up_proj.weight)
    assert body_runs(CONFIG, mixed) == [False, True, False]
    fixed = in_format(CONFIG, "f32")
    fixed.layers[0].self_attn.k_proj.weight.flags.writeable = False
    assert body_runs(CONFIG, fixed) == [False, False, True]
    turned = in_format(CONFIG, "f32")
    turned.layers[0].self_attn.q_proj.weight = np.asfortranarray(turned.layers[0].self_attn.q_proj.weight)
    assert body_runs(CONFIG, turned) == [False, False, True]
    both = (decoded(backends.get("cpu"), CONFIG, weights, 3, 5) for weights in (turned, in_format(CONFIG, "f32")))
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)
    odd = dataclasses.replace(CONFIG, intermediate_size=100)
    assert body_runs(odd, in_format(odd, "bf16")) == AT_ONCE
    assert body_runs(odd, in_format(odd, "int8")) == NOT_AT_ALL
    experts = moe_config()
    assert not all(body_runs(experts, in_format(experts, "f32")))
    without = backends.get("cpu", features=())
    assert body_runs(CONFIG, in_format(CONFIG, "int8"), without) == NOT_AT_ALL


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_differ_go_one_by_one(layer):
    """Each is one call, but of kernels for other types."""
    weights = in_format(CONFIG, "f32")
    for place in vars(weights.layers[layer].self_attn).values():
        place.weight.flags.writeable = False
    assert body_runs(CONFIG, weights) == [False, True, True]
    both = (decoded(backends.get("cpu"), CONFIG, each, 3, 5) for each in (weights, in_format(CONFIG, "f32")))
    np.testing.assert_array_equal(*both)


def test_what_is_put_in_a_weights_place_counts_from_the_next_token():
    """The body remembers where arrays lie: weights that move, caches that grow must not be read where they were."""
    one, other = (random_weights(CONFIG, seed) for seed in (0, 1))
    backend, weights = backends.get("cpu"), tree(one)
    cache, watched = KVCache(backend, CONFIG), KVCache(backend, CONFIG)
    for n, name in enumerate(["", *sorted(name for name in one if ".layers." in name), ""]):
        if name:
            *parents, last = name.removeprefix("model.").split(".")
            place = weights
            for part in parents:
                place = place[int(part)] if part.isdigit() else getattr(place, part)
            setattr(place, last, other[name])
        if n == 20:
            cache.reserve(1000)
        seen = forward(backend, CONFIG, weights, make_step([([n], cache)]))
        expected = forward(Recording(backend), CONFIG, weights, make_step([([n], watched)]))
        np.testing.assert_array_equal(seen, expected, err_msg=name)


def test_a_cache_that_is_gone_leaves_nothing_behind():
    """What the body remembers of a sequence, its weights included, goes with the sequence's cache."""
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    cache, others = KVCache(backend, CONFIG, "bf16"), [KVCache(backend, CONFIG, "bf16") for _ in range(2)]
    forward(backend, CONFIG, weights, make_step([([1], cache)]))
    forward(backend, CONFIG, weights, make_step([([1], each) for each in (cache, *others)]))
    keys = weakref.ref(others[0].layers[1])
    matrix = weakref.ref(weights.layers[1].mlp.up_proj.weight)
    del weights, cache, others
    gc.collect()
    assert matrix() is None and keys() is None


def test_nothing_is_spoilt():
    """x and the weights are read only; a NaN is not lost."""
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    before = {name: array.copy() for name, array in random_weights(CONFIG, 0).items()}
    decoded(backend, CONFIG, weights, 3, 5)
    np.testing.assert_array_equal(weights.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])
    weights.layers[0].input_layernorm.weight[3] = np.nan
    assert np.isnan(decoded(backend, CONFIG, weights, 3, 5)).any()
    assert decoder_layer.cost_of is None  # or a trace would not look inside


def test_norms_that_have_to_be_widened_stay_where_they_are():
    """A copy that the kernel takes instead must live as long as its address is used."""
    backend, weights = backends.get("cpu"), in_format(CONFIG, "f32")
    for layer in weights.layers:
        layer.post_attention_layernorm.weight = layer.post_attention_layernorm.weight.astype(BFLOAT16)
    cache, watched = KVCache(backend, CONFIG), KVCache(backend, CONFIG)
    for n in range(4):
        seen = forward(backend, CONFIG, weights, make_step([([n], cache)]))
        np.zeros((50, CONFIG.hidden_size), np.float32).fill(np.nan)  # where freed memory was
        expected = forward(Recording(backend), CONFIG, weights, make_step([([n], watched)]))
        np.testing.assert_array_equal(seen, expected)
