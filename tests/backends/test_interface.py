"""The one door: unchanged blocks run counted, on shapes alone, under gradients, and with replaced bodies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from backends import Backend, Cost, Wrapper, get, nbytes, shape_only
from backends.interface import Chain
from tests.helpers import (
    CONFIGS,
    Recording,
    assert_close,
    chunk_config,
    host,
    logits_of,
    moe_config,
    small_weights,
    tokens,
)  # fmt: skip
from tinyqwen.blocks import cross_entropy
from tinyqwen.config import DualChunk
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.trace.explain import operations
from tinyqwen.weights import count_parameters, fill, tensor_shapes, tree

OPERATIONS = operations()
CHOICE = {"sample", "likeliest", "by_likelihood"}  # of a token, after the model
CHAINS = {name for name, each in OPERATIONS.items() if isinstance(each, Chain)}  # whose parts alone are seen
KINDS = {**CONFIGS, "chunks, hot": chunk_config(dual_chunk_attention_config=DualChunk(6, 2, 4))}
INSIDE = {"scores", "softmax", "softmax_part", "mix"}  # of attention's definition, which a body need not open


def test_an_unknown_backend_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'tpu' is not known; there is numpy"):
        get("tpu")


# ---- counting -----------------------------------------------------------------------------------------------------


def run_both_phases(backend, config):
    """A prefill of two sequences, then a decode step of both."""
    weights = small_weights(config, backend)
    caches = [KVCache(backend, config), KVCache(backend, config)]
    forward(backend, config, weights, make_step([(tokens(config, 5), caches[0]), (tokens(config, 8), caches[1])]))
    return forward(backend, config, weights, make_step([([1], caches[0]), ([2], caches[1])]))


def run_in_steps(backend, config):
    """A text in pieces, so long that windows go round."""
    weights, cache, ids = small_weights(config, backend), KVCache(backend, config), tokens(config, 16)
    for start in range(0, 16, 4):
        logits_of(backend, config, weights, ids[start : start + 4], cache)


def test_nested_operations_pass_through_the_door(backend):
    """A watcher sees the whole tree, down to the softmax inside attention inside self_attention inside a layer."""
    config = moe_config()
    watching = Recording(backend)
    run_both_phases(watching, config)
    names = watching.names
    assert names.count("decoder_layer") == names.count("self_attention") == 2 * config.num_hidden_layers
    assert names.count("sparse_moe") == names.count("route") == 2  # a sparse layer in two steps
    if not backend.bodies:  # a replaced attention need not open up
        per_sequence = 2 * 2 * config.num_hidden_layers  # steps, sequences, layers
        assert names.count("scores") == names.count("mix") == per_sequence
        assert names.count("softmax") == per_sequence + names.count("route")


def test_every_operation_is_some_models(backend):
    watching = Recording(backend)
    for config in KINDS.values():
        run_in_steps(watching, config)
    inside = INSIDE if backend.bodies else set()
    assert set(watching.names) | inside == OPERATIONS.keys() - CHOICE - {"log_probability"} - CHAINS


def test_wrappers_stack(backend):
    """The inner and the outer one see the same operations, nested ones included; and nothing else changes."""
    config = CONFIGS["moe"]
    inner = Recording(backend)
    outer = Recording(inner)
    np.testing.assert_array_equal(host(run_both_phases(outer, config)), host(run_both_phases(backend, config)))
    assert inner.names == outer.names and len(inner.names) > 100


class Sealed:
    """An array that can be viewed, and not computed with."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def reshape(self, *shape):
        return Sealed(self.array.reshape(*shape))

    def __getitem__(self, index):
        return Sealed(self.array[index])


def through(value, change):
    return type(value)(through(item, change) for item in value) if isinstance(value, (tuple, list)) else change(value)


class Sealing(Wrapper):
    """Opens the arrays for operations that state their cost, and for nobody else."""

    def run(self, operation, arrays, settings, door=None):
        if operation.cost_of is None:
            return super().run(operation, arrays, settings, door)
        arrays = through(arrays, lambda value: value.array if isinstance(value, Sealed) else value)
        return through(self.inner.run(operation, arrays, settings), Sealed)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_between_operations_there_are_only_views(backend, config):
    """Arithmetic outside of operations would be missed by traces, plans and gradients. Here it is a TypeError."""
    weights, step = small_weights(config, backend), make_step([(tokens(config, 5), None), (tokens(config, 3), None)])
    sealed = forward(Sealing(backend), config, weights, step)
    np.testing.assert_array_equal(host(sealed.array), host(forward(backend, config, weights, step)))


# ---- replaced bodies ----------------------------------------------------------------------------------------------


def test_a_replaced_body_is_used_wherever_the_operation_is_called():
    config, calls = CONFIGS["moe"], []

    def fast_swiglu(backend, gate_TF, up_TF):
        calls.append(gate_TF.shape)
        return gate_TF * up_TF / (1 + np.exp(-gate_TF))

    fast = Backend(np, bodies={"swiglu": fast_swiglu})
    plain = Backend(np)
    ids, weights = tokens(config, 9), small_weights(config)
    # 1e-5: the body rounds in another order, four layers deep
    assert_close(logits_of(fast, config, weights, ids), logits_of(plain, config, weights, ids), 1e-5)
    counted = Recording(plain)
    logits_of(counted, config, weights, ids)
    assert len(calls) == len(counted.outputs("swiglu")) > config.num_hidden_layers


def test_a_composite_can_be_replaced_and_wrappers_then_see_one_operation():
    config, weights = CONFIGS["dense"], small_weights(CONFIGS["dense"])

    def fused_feed_forward(backend, x_TD, weights):
        gate_TF, up_TF = x_TD @ weights.gate_proj.weight.T, x_TD @ weights.up_proj.weight.T
        return (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ weights.down_proj.weight.T

    watching = Recording(Backend(np, bodies={"feed_forward": fused_feed_forward}))
    ids = tokens(config, 9)
    assert_close(logits_of(watching, config, weights, ids), logits_of(Backend(np), config, weights, ids), 1e-5)
    assert len(watching.outputs("feed_forward")) == config.num_hidden_layers and not watching.outputs("swiglu")


def test_a_body_may_leave_a_call_to_the_definition():
    config, weights = CONFIGS["dense"], small_weights(CONFIGS["dense"])
    ids = tokens(config, 9)
    declining = Backend(np, bodies={"linear": lambda *arrays, **settings: NotImplemented})
    expected = logits_of(Backend(np), config, weights, ids)
    np.testing.assert_array_equal(logits_of(declining, config, weights, ids), expected)


# ---- shapes alone -------------------------------------------------------------------------------------------------


class ShapesOnly(Wrapper):
    """Answers every operation that states its cost with that cost's shapes; opens the others."""

    def __init__(self, inner):
        super().__init__(inner)
        self.costs: list[tuple[str, tuple, Cost]] = []

    def run(self, operation, arrays, settings, door=None):
        if operation.cost_of is None:
            return super().run(operation, arrays, settings, door)
        cost = operation.cost_of(*arrays, **settings)
        self.costs.append((operation.name, arrays, cost))
        return cost.out

    def empty(self, shape, dtype=None):
        return shape_only(shape, dtype or self.dtype)

    def flops(self, *names):
        return sum(cost.flops for name, _, cost in self.costs if name in names)


def plan(config, new, past=0, all_logits=False):
    """A step of that many new tokens behind that many old ones, on shapes. Returns the wrapper, weights and logits."""
    shapes = ShapesOnly(Backend(np))
    tensors = fill(config, lambda name, shape: shape_only(shape))
    cache = KVCache(shapes, config)
    cache.reserve(past + new, step=max(new, min(past, 6)))
    cache.length = past
    step = make_step([([0] * new, cache)], all_logits=all_logits)
    return shapes, tensors, forward(shapes, config, tree(tensors), step)


class Checking(Wrapper):
    """Runs every operation and compares the result's shapes and types with what its cost foretold."""

    def __init__(self, inner):
        super().__init__(inner)
        self.checked: set[str] = set()

    def run(self, operation, arrays, settings, door=None):
        cost = operation.cost_of and operation.cost_of(*arrays, **settings)
        out = super().run(operation, arrays, settings, door)
        if cost:
            self.checked.add(operation.name)
            assert outline(cost.out) == outline(out), operation.name
            assert cost.written >= 0 and cost.read > 0 and cost.flops >= 0
            assert all(isinstance(number, int) for number in cost[1:]), f"{operation.name}: {cost[1:]}"
        return out


def outline(value):
    if isinstance(value, (tuple, list)):
        return [outline(item) for item in value]
    return value.shape, value.dtype


def test_every_cost_foretells_shape_and_type_of_the_result(backend):
    """Dense, tied, windowed and sparse; prefill, decode and several sequences; every operation that has a cost."""
    checked = set()
    for config in KINDS.values():
        checking = Checking(backend)
        run_both_phases(checking, config)
        run_in_steps(checking, config)
        logits_NV = logits_of(checking, config, small_weights(config, backend), tokens(config, 7))  # without a cache
        cross_entropy.log_probability(checking, backend.xp.asarray(logits_NV), np.arange(7))  # as training does
        checked |= checking.checked
    inside = INSIDE if backend.bodies else set()
    without_cost = {"decoder_layer", "self_attention", "feed_forward", "sparse_moe", "dual_chunk_tables"} | CHAINS
    assert without_cost == {name for name, each in OPERATIONS.items() if not each.cost_of}
    assert checked | inside == OPERATIONS.keys() - without_cost - CHOICE


class Outermost(Recording):
    """Keeps the operations that a plan answers, and does not look inside them."""

    def run(self, operation, arrays, settings, door=None):
        if operation.cost_of is None:
            return self.inner.run(operation, arrays, settings, door or self)
        out = self.inner.run(operation, arrays, settings)  # without a door: what is inside stays unseen
        self.seen.append((operation.name, out))
        return out


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_model_on_shapes_equals_a_real_run(backend, config):
    """The same operations in the same order with the same shapes and types, the routed experts included."""
    real, weights = Outermost(backend), small_weights(config, backend)
    cache = KVCache(real, config)
    logits_of(real, config, weights, tokens(config, 6), cache)
    real.seen.clear()
    logits_of(real, config, weights, tokens(config, 3), cache)
    shapes, _, logits_NV = plan(config, new=3, past=6, all_logits=True)
    assert [(name, outline(out)) for name, out in real.seen] == [
        (name, outline(cost.out)) for name, _, cost in shapes.costs
    ]
    assert logits_NV.shape == (3, config.vocab_size)


@pytest.mark.parametrize("name", SIZES)
def test_every_published_size_runs_on_shapes_alone(name):
    """A prompt chunk behind 100,000 cached tokens: 72B and 57B-A14B included, in a few milliseconds and no memory."""
    config = SIZES[name].config()
    shapes, _, logits_NV = plan(config, new=64, past=100_000)
    assert logits_NV.shape == (1, config.vocab_size)
    assert {cost.out.dtype for _, _, cost in shapes.costs if isinstance(cost.out, np.ndarray)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", SIZES)
def test_flops_equal_the_closed_form(name):
    """Two per parameter and token, for every matrix that the token meets, biases one; the head for one row only."""
    config, T = SIZES[name].config(), 64
    shapes, _, _ = plan(config, T, past=1000)
    A, D, M = config.num_experts_per_tok, config.hidden_size, config.moe_intermediate_size
    L, V = config.num_hidden_layers, config.vocab_size
    tensors = {name: math.prod(shape) for name, shape in tensor_shapes(config).items()}
    biases = sum(count for name, count in tensors.items() if name.endswith("bias"))
    norms = sum(count for name, count in tensors.items() if "norm" in name)
    counted = count_parameters(config)
    tables = counted["total"] - counted["non_embedding"]
    matrices = counted["active"] - tables - biases - norms
    # The experts and the router state more than their matrices: swiglu and the weighted sum, and the softmax.
    besides = T * L * (A * (5 * M + 2 * D) + 5 * config.num_experts)
    assert shapes.flops("linear", "experts", "route") == 2 * T * matrices + T * biases + 2 * D * V + besides


@pytest.mark.parametrize("name", SIZES)
def test_a_decode_step_reads_every_weight_that_it_uses_once(name):
    """Of the embedding table that is one row to look up, and all of it as the head where it is tied."""
    config = SIZES[name].config()
    shapes, tensors, _ = plan(config, new=1, past=1000)
    ours = {id(tensor) for tensor in tensors.values()}
    read = 0
    for operation_name, arrays, cost in shapes.costs:
        if operation_name == "experts" or any(id(array) in ours for array in arrays):
            read += cost.read - sum(nbytes(a) for a in arrays if isinstance(a, np.ndarray) and id(a) not in ours)
    active, table = 4 * count_parameters(config)["active"], 4 * config.vocab_size * config.hidden_size
    row = 4 * config.hidden_size
    assert read == active + row - (0 if config.tie_word_embeddings else table)


def test_attention_reads_the_cache_once_and_grows_with_the_text():
    config = SIZES["0.5B"].config()
    for past in (1000, 100_000):
        shapes, _, _ = plan(config, new=1, past=past)
        read = sum(cost.read for name, _, cost in shapes.costs if name == "attention")
        queries = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        assert read == 4 * (past + 1) * config.kv_values_per_token + queries
