"""One token through a layer in five launches: the numbers of the definition's steps, in every format."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import backends
from tests.helpers import Recording, assert_close, decoded, in_format
from tinyqwen.config import Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

CONFIG = Config(
    hidden_size=48, intermediate_size=70, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
    head_dim=32, vocab_size=50,
)  # fmt: skip
NUMPY = backends.get("numpy")
# Keys that are rounded fall on another step where they lie between two; then a logit moves by far more than noise.
ALLOWED = {"f32": 2e-5, "bf16": 1e-3, "int8": 2e-3}


@pytest.mark.parametrize(
    ("format", "kv"), [("f32", "f32"), ("bf16", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "f32")]
)
def test_equals_the_steps(gpu, format, kv, monkeypatch):
    weights, launched, launch = in_format(CONFIG, format, scale=0.2), [], gpu.launch
    monkeypatch.setattr(gpu, "launch", lambda name, *rest, **more: (launched.append(name), launch(name, *rest, **more)))
    alone = decoded(gpu, CONFIG, weights, 4, 3, kv)
    assert launched.count("norm_qkv_kernel") == 3 * 2 and launched.count("norm_gate_up_kernel") == 3 * 2
    assert_close(alone, decoded(NUMPY, CONFIG, weights, 4, 3, kv), ALLOWED[kv])
    watched = Recording(gpu)
    assert_close(decoded(watched, CONFIG, weights, 4, 3, kv), alone, ALLOWED[kv])
    assert {"rms_norm", "linear", "rope", "attention", "swiglu"} <= set(watched.names)


def test_a_recorded_step_finds_its_place_on_the_device(gpu):
    """Neither id nor position nor length is known on the host: the same launches serve every token."""
    weights, prompt = in_format(CONFIG, "bf16", scale=0.2), [3, 1, 4]
    caches = [KVCache(gpu, CONFIG, "bf16") for _ in range(2)]
    for cache in caches:
        forward(gpu, CONFIG, weights, make_step([(prompt, cache)]))
    caches[1].past_1 = np.array([3])
    step = make_step([([7], caches[1])])
    for token in (7, 8, 9):
        expected = forward(gpu, CONFIG, weights, make_step([([token], caches[0])]))
        step.token_T[:], step.position_T[:] = token, caches[1].past_1
        caches[1].length = 0  # what the host believes must not matter
        assert_close(forward(gpu, CONFIG, weights, step), expected, 2e-6)  # its keys are cut into more splits
        caches[1].past_1 += 1


def test_orders_of_threads_do_not_change_a_bit():
    from tests.cuda_host.on_numpy import OnNumPy

    weights = in_format(CONFIG, "int4", scale=0.2)
    one, *others = [decoded(OnNumPy(order), CONFIG, weights, 3, 3, "bf16") for order in ("ascending", "descending", 7)]
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_a_layer_that_does_not_fit_takes_the_steps(gpu):
    config = dataclasses.replace(CONFIG, head_dim=20)  # not whole blocks of rows in a half of a head
    weights = tree(random_weights(config, 0, scale=0.2))
    cache = KVCache(gpu, config)
    logits = forward(gpu, config, weights, make_step([([1], cache)]))
    assert_close(logits, forward(NUMPY, config, weights, make_step([([1], KVCache(NUMPY, config))])), 2e-5)
