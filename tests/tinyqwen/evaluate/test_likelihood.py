"""Likelihoods: what a forward pass of the whole text says, however much of it was known already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import logits_of
from tinyqwen.config import DualChunk
from tinyqwen.errors import ModelFilesError
from tinyqwen.evaluate.likelihood import Reader, log_likelihoods
from tinyqwen.runtime import load


@pytest.fixture(scope="module", params=["plain", "window", "dual chunks"])
def runtime(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    window = {"sliding_window": 5, "layer_types": ("full_attention", "sliding_attention")}
    write_tiny_checkpoint(folder, **(window if request.param == "window" else {}))
    chunks = {"dca": DualChunk(12, 4)} if request.param == "dual chunks" else {}
    return load(folder, backend="numpy", **chunks)


def directly(runtime, context, continuation):
    """By the definition: one pass over everything."""
    logits_SV = logits_of(runtime.backend, runtime.config, runtime.checkpoint.weights, context + continuation[:-1])
    logits_NV = logits_SV[-len(continuation) :].astype(np.float64)
    log_p_NV = logits_NV - np.log(np.exp(logits_NV - logits_NV.max()).sum(-1, keepdims=True)) - logits_NV.max()
    chosen = log_p_NV[np.arange(len(continuation)), continuation]
    return chosen.sum(), logits_NV.argmax(-1).tolist() == continuation


ids = st.lists(st.integers(0, 3), min_size=1, max_size=30)  # few letters: many common beginnings
requests = st.lists(st.tuples(ids, st.lists(st.integers(0, 3), min_size=1, max_size=4)), min_size=1, max_size=6)


@given(requests)
def test_any_requests_in_any_order_are_what_one_pass_over_each_says(runtime, asked):
    for (context, continuation), (log_p, greedy) in zip(asked, log_likelihoods(runtime, asked)):
        expected, expected_greedy = directly(runtime, context, continuation)
        assert log_p == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert greedy == expected_greedy


@pytest.mark.parametrize("name", backends.NAMES)
def test_every_backend(name, tmp_path):
    write_tiny_checkpoint(tmp_path)
    runtime = load(tmp_path, backend=name)
    asked = [([7] * 300 + [n], [8, n, 9][: 1 + n % 3]) for n in range(7)]  # more than one chunk of a prompt
    for request, (log_p, _) in zip(asked, log_likelihoods(runtime, asked)):
        assert log_p == pytest.approx(directly(runtime, *request)[0], rel=1e-3)


def test_what_the_model_would_say_is_greedy(runtime):
    context, said = [5, 6, 7], []
    for _ in range(4):
        logits_SV = logits_of(runtime.backend, runtime.config, runtime.checkpoint.weights, context + said)
        said.append(int(logits_SV[-1].argmax()))
    other = [*said[:-1], (said[-1] + 1) % 256]
    assert [greedy for _, greedy in log_likelihoods(runtime, [(context, said), (context, other)])] == [True, False]


def test_examples_that_all_questions_share_are_read_once(tmp_path, monkeypatch):
    write_tiny_checkpoint(tmp_path)
    runtime, read = load(tmp_path, backend="numpy"), []
    monkeypatch.setattr("tinyqwen.evaluate.likelihood.forward", spying(read))
    shots = list(range(200))
    asked = [([*shots, question, 9], [choice]) for choice in (1, 2, 3, 4) for question in (11, 12, 13)]
    log_likelihoods(runtime, asked)
    assert sum(read) == 200 + 3 * 2, "the shots, and of each question its own tokens; of its four choices nothing"


def spying(read):
    from tinyqwen.model import forward

    def spy(backend, config, weights, step):
        read.append(len(step.token_T))
        return forward(backend, config, weights, step)

    return spy


def test_a_long_text_loses_its_beginning(runtime):
    long, continuation = [1, 2, 3] * 300, [4, 5]
    short = long[-(runtime.context - 1) :]
    assert log_likelihoods(runtime, [(long, continuation)])[0][0] == pytest.approx(
        directly(runtime, short, continuation)[0], rel=1e-3
    )


def test_numbers_that_are_none_are_named(tmp_path):
    write_tiny_checkpoint(tmp_path)
    runtime = load(tmp_path, backend="numpy", dtype="f32", mapped=False)
    weights = runtime.checkpoint.weights.layers[1].mlp.up_proj
    weights.weight = np.full_like(weights.weight, np.nan)
    with pytest.raises(ModelFilesError, match=r"layers\[?\.?1"):
        list(Reader(runtime).rows([1, 2, 3], 1))
