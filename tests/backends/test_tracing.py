"""Tracing and meta: what is recorded is true, and watching changes nothing."""

import weakref

import numpy as np
import pytest

from backends import Meta, Wrapper, get, shape_only
from backends.tracing import Tracing
from tests.helpers import CONFIGS, host, logits_of, small_weights, tokens
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import fill, names_of, tensor_shapes, tree

every_config = pytest.mark.parametrize("name", CONFIGS)


class Costs(Wrapper):
    """The cost of every call that has one, computed afresh."""

    def __init__(self, inner):
        super().__init__(inner)
        self.costs = []

    def run(self, operation, arrays, settings, door=None):
        index = len(self.costs)
        self.costs.append(None)
        out = super().run(operation, arrays, settings, door)
        if operation.cost_of is not None:
            self.costs[index] = operation.cost_of(*arrays, **settings)
        return out


@every_config
def test_tracing_changes_no_number(backend, name):
    config = CONFIGS[name]
    weights = small_weights(config, backend)
    plain = logits_of(backend, config, weights, tokens(config, 9))
    traced = logits_of(Tracing(backend, names_of(weights)), config, weights, tokens(config, 9))
    assert np.array_equal(host(plain), host(traced))


@every_config
def test_remembered_costs_are_the_costs(backend, name):
    """Costs are remembered by shapes and settings; each must be what a fresh computation gives."""
    config = CONFIGS[name]
    weights = small_weights(config, backend)
    fresh, tracing = Costs(backend), Tracing(backend, names_of(weights))
    for watching in (fresh, tracing):
        cache = KVCache(backend, config)
        for ids in (tokens(config, 7), [1], [2]):
            logits_of(watching, config, weights, ids, cache)
    assert len(fresh.costs) == len(tracing.spans)
    for cost, span in zip(fresh.costs, tracing.spans):
        assert (cost and cost[1:]) == (span.cost and span.cost[1:]), span.path


@every_config
def test_every_operation_has_its_place(backend, name):
    """Each tensor of the model is met under its own name, and nothing is called twice by two names."""
    config = CONFIGS[name]
    weights = small_weights(config, backend)
    tracing = Tracing(backend, names_of(weights))
    logits_of(tracing, config, weights, tokens(config, 40))
    met = {span.path for span in tracing.spans}
    layers = {f"layers.{layer}" for layer in range(config.num_hidden_layers)}
    assert {*layers, "embed_tokens", "norm", "lm_head"} <= met
    for tensor in tensor_shapes(config):
        path = tensor.removeprefix("model.").removesuffix(".weight").removesuffix(".bias")
        assert path in met or ".experts." in path, path
    assert {span.path for span in tracing.spans if span.operation == "decoder_layer"} == layers


def test_spans_nest_in_time_and_depth(backend):
    config = CONFIGS["moe"]
    weights = small_weights(config, backend)
    tracing = Tracing(backend, names_of(weights))
    logits_of(tracing, config, weights, tokens(config, 5))
    open_spans = []
    for span in tracing.spans:
        del open_spans[span.depth :]
        if open_spans:
            assert open_spans[-1].start <= span.start <= span.end <= open_spans[-1].end
        open_spans.append(span)


@every_config
def test_shapes_alone_give_the_same_trace(name):
    """Meta and NumPy: the same operations in the same places with the same shapes and costs."""
    config, traces = CONFIGS[name], []
    real = small_weights(config)
    for backend, weights in ((get("numpy"), real), (Meta(), tree(fill(config, lambda _, shape: shape_only(shape))))):
        tracing = Tracing(backend, names_of(weights))
        logits_of(tracing, config, weights, tokens(config, 6))
        traces.append([(s.path, s.shape, str(s.dtype), s.cost) for s in tracing.spans if s.cost])
    numpy_trace, meta_trace = traces
    inner = [record for record in numpy_trace if record not in meta_trace]
    assert [record for record in numpy_trace if record not in inner] == meta_trace
    # NumPy also shows what is inside an operation that has a cost of its own: attention, the router, the experts.
    assert all(record[0].count(".") >= 3 for record in inner)


class Live(Wrapper):
    """Counts the results that are referred to in a real run, each under the array that owns its memory."""

    def __init__(self, inner):
        super().__init__(inner)
        self.live = self.peak = self.closed = 0

    def run(self, operation, arrays, settings, door=None):
        counted = operation.cost_of is not None and not self.closed
        self.closed += operation.cost_of is not None
        out = super().run(operation, arrays, settings, door)
        self.closed -= operation.cost_of is not None
        for array in (out if isinstance(out, tuple) else (out,)) if counted else ():
            if not isinstance(array, list):
                self.live += array.nbytes
                self.peak = max(self.peak, self.live)
                owner = array if array.base is None else array.base
                weakref.finalize(owner, self.release, array.nbytes)
        return out

    def release(self, size):
        self.live -= size


@every_config
@pytest.mark.parametrize("count", [1, 50])
def test_the_peak_of_results_on_shapes_is_that_of_a_real_run(name, count):
    config = CONFIGS[name]
    meta, live = Meta(), Live(get("numpy"))
    forward(meta, config, tree(fill(config, lambda _, shape: shape_only(shape))), step(config, count))
    forward(live, config, small_weights(config), step(config, count))
    assert meta.peak_bytes == live.peak > 0
    assert meta.live_bytes == live.live == 0


def step(config, count):
    return make_step([(tokens(config, count), None)])
