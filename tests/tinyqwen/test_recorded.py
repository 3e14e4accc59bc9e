"""Decoding by graphs says what decoding step by step says: the whole backend on the stand-in for CuPy."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

import backends
from backends import Backend
from backends.cuda import Cuda
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tests.helpers import CONFIGS, dense_config, small_weights, tokens, window_config
from tinyqwen.errors import ModelFilesError
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.recorded import Recorded
from tinyqwen.sampling import Sampling

NUMPY = Backend(np)
FUSED = dense_config(
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=32
)  # a layer in five launches
HOT = Sampling(do_sample=True, temperature=0.9, top_k=7, top_p=0.9, repetition_penalty=1.3)


@pytest.fixture(params=["cuda-host", "cuda-device"] if backends.choose()[0] == "cuda" else ["cuda-host"])
def cuda(request):
    if request.param == "cuda-device":
        return backends.get("cuda")
    if why := host.missing():
        pytest.skip(why)
    return Cuda(FakeCupy())


def on_the_stand_in(cuda) -> FakeCupy:
    """The array module, if it counts what a GPU does not tell."""
    if not isinstance(cuda.xp, FakeCupy):
        pytest.skip("a GPU does not count this")
    return cuda.xp


@pytest.fixture
def graphs(cuda, monkeypatch):
    """The graphs that are made, and how often each is launched."""
    made, record = [], cuda.record
    monkeypatch.setattr(cuda, "record", lambda function: made.append(record(function)) or made[-1])
    return lambda: [getattr(recording.graph, "launches", None) for recording in made]


def start(backend, config, length=5, seed=0, sampling=Sampling(), count=10, **settings):  # noqa: B008
    cache = KVCache(backend, config)
    ids = tokens(config, length, seed)
    return Running(ids, cache, sampling, settings.pop("context", 999), seed, max_new_tokens=count, **settings)


def run(backend, config, sequences, **settings):
    for _ in generate(backend, config, small_weights(config, backend), sequences, **settings):
        pass
    return [sequence.new_ids for sequence in sequences]


@pytest.mark.parametrize("config", [FUSED, CONFIGS["dense"], CONFIGS["yarn"], CONFIGS["moe"], CONFIGS["tied"]],
                         ids=["fused", "dense", "yarn", "moe", "tied"])  # fmt: skip
@pytest.mark.parametrize("sampling", [Sampling(), HOT], ids=["greedy", "sampled"])
def test_the_same_tokens_as_step_by_step(cuda, graphs, config, sampling):
    expected = run(NUMPY, config, [start(NUMPY, config, sampling=sampling)])
    assert run(cuda, config, [start(cuda, config, sampling=sampling)]) == expected
    assert graphs() in ([10], [None])  # nine tokens after the prompt's, and one step ahead


def test_several_sequences_of_several_kinds(cuda, graphs):
    """They join as their prompts are read and leave as they end; each time another step is recorded."""
    kinds = [(5, Sampling(), 9), (9, HOT, 6), (2, HOT, 12)]
    said = {}
    for backend in (NUMPY, cuda):
        sequences = [
            start(backend, FUSED, length, n, sampling, count) for n, (length, sampling, count) in enumerate(kinds)
        ]
        said[backend.name] = run(backend, FUSED, sequences, chunk=8)
    assert said["cuda"] == said["numpy"] and len(graphs()) >= 3


def test_company_adds_no_launch(cuda, monkeypatch):
    """Four sequences are as many launches a step as two: attention, cache and choice are one for all."""
    launched, launch, forward = [], cuda.launch, Recorded.step
    monkeypatch.setattr(cuda, "launch", lambda name, *all, **more: (launched.append(name), launch(name, *all, **more)))
    monkeypatch.setattr(Recorded, "step", lambda self: (launched.clear(), forward(self)))
    said, steps = [], []
    for N in (2, 4):
        sequences = [start(cuda, FUSED, 5, n, (Sampling(), HOT)[n % 2], count=9) for n in range(N)]
        said.append(run(cuda, FUSED, sequences))
        steps.append(list(launched))
    assert steps[0] == steps[1] and said[0] == said[1][:2]
    assert steps[0].count("attention_kernel") == steps[0].count("update_cache_kernel") == FUSED.num_hidden_layers


def test_experts_of_many_sequences(cuda, graphs, monkeypatch):
    """80 choices are recorded; with more than the device takes at once, each step is run by itself."""
    config, said = CONFIGS["moe"], []
    for most in (256, 79):
        monkeypatch.setattr("tinyqwen.recorded.CHOICES", most)
        said.append(run(cuda, config, [start(cuda, config, 3, n, count=4) for n in range(20)]))
    assert said[0] == said[1] == run(NUMPY, config, [start(NUMPY, config, 3, n, count=4) for n in range(20)])
    assert len(graphs()) == 1


def test_a_cache_that_grows_gets_another_graph(cuda, graphs):
    said = [run(backend, FUSED, [start(backend, FUSED, 250, count=20)]) for backend in (NUMPY, cuda)]
    assert said[0] == said[1] and len(graphs()) == 2


def test_the_host_waits_once_a_token(cuda):
    xp, sequence = on_the_stand_in(cuda), start(cuda, FUSED, count=30)
    steps = generate(cuda, FUSED, small_weights(FUSED, cuda), [sequence])
    list(islice(steps, 5))
    before = xp.waits
    list(islice(steps, 20))
    assert xp.waits - before == 20


def test_a_chat_goes_on_with_the_cache_it_has(cuda):
    """Two turns: the second is read behind what the first left, the step that ran ahead included."""
    said = []
    for backend in (NUMPY, cuda):
        weights, sequence = small_weights(FUSED, backend), start(backend, FUSED, count=6)
        for _ in generate(backend, FUSED, weights, [sequence]):
            pass
        again = Running(sequence.ids + tokens(FUSED, 4, 9), sequence.cache, HOT, 999, 7, max_new_tokens=6)
        for _ in generate(backend, FUSED, weights, [again]):
            pass
        said.append((sequence.new_ids, again.new_ids, sequence.cache.length))
    assert said[0] == said[1]


@pytest.mark.parametrize("when", range(1, 12))
def test_an_interrupt_anywhere_loses_nothing(cuda, monkeypatch, when):
    """Ctrl-C in the middle of a launch, or while waiting; then the same sequence goes on as if nothing had been."""
    (expected,) = run(NUMPY, FUSED, [start(NUMPY, FUSED, sampling=HOT)])
    calls = 0

    def interrupted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == when:
                raise KeyboardInterrupt
            out = function(*arguments, **keywords)
            calls += 1
            if calls == when:
                raise KeyboardInterrupt
            return out

        return call

    monkeypatch.setattr(Recorded, "launch", interrupted(Recorded.launch))
    monkeypatch.setattr(Recorded, "goes_on", interrupted(Recorded.goes_on))
    weights, sequence = small_weights(FUSED, cuda), start(cuda, FUSED, sampling=HOT)
    with pytest.raises(KeyboardInterrupt):
        for _ in generate(cuda, FUSED, weights, [sequence]):
            pass
    assert expected[: len(sequence.new_ids)] == sequence.new_ids
    for _ in generate(cuda, FUSED, weights, [sequence]):
        pass
    assert sequence.new_ids == expected


def test_one_that_is_stopped_from_outside_leaves_the_others_going(cuda):
    said = []
    for backend in (NUMPY, cuda):
        sequences = [start(backend, FUSED, 3 + n, n) for n in range(2)]
        for _ in generate(backend, FUSED, small_weights(FUSED, backend), sequences):
            if len(sequences[0].new_ids) == 4:
                sequences[0].finish_reason = "stop"
        said.append([sequence.new_ids for sequence in sequences])
    assert said[0] == said[1]


def test_it_stops_at_the_end_of_the_context(cuda):
    said = [run(backend, FUSED, [start(backend, FUSED, count=None, context=12)]) for backend in (NUMPY, cuda)]
    assert said[0] == said[1] and len(said[1][0]) == 7


def test_what_cannot_be_recorded_runs_step_by_step(cuda, graphs):
    sliding, wide = window_config(), Sampling(do_sample=True, top_p=0.9)
    assert run(cuda, sliding, [start(cuda, sliding)]) == run(NUMPY, sliding, [start(NUMPY, sliding)])
    assert run(cuda, FUSED, [start(cuda, FUSED, sampling=wide)]) == run(
        NUMPY, FUSED, [start(NUMPY, FUSED, sampling=wide)]
    )
    del cuda.bodies["advance"]
    assert run(cuda, FUSED, [start(cuda, FUSED)]) == run(NUMPY, FUSED, [start(NUMPY, FUSED)])
    assert graphs() == []


def test_numbers_that_are_none_are_named(cuda):
    """A weight that is NaN in a column that the prompt does not reach: the graph meets it first."""
    weights, sequence = small_weights(FUSED, cuda), start(cuda, FUSED)
    steps = generate(cuda, FUSED, weights, [sequence])
    list(islice(steps, 3))
    weights.layers[1].mlp.up_proj.weight[3, 4] = np.nan
    with pytest.raises(ModelFilesError, match=r"layers.1.mlp.up_proj.weight itself holds 1"):
        list(steps)


def test_ids_beyond_the_vocabulary_are_never_said(cuda):
    small = dataclasses.replace(FUSED, vocab_size=41)
    said = run(cuda, small, [start(cuda, small, count=30)], vocabulary=20)
    assert max(said[0]) < 20
