"""The views: true numbers, any width, every kind of model, and no text that could be taken for an instruction."""

import numpy as np
import pytest

import backends
from tests.helpers import CONFIGS, dense_config, moe_config, small_weights
from tests.tinyqwen.trace.watching import MANY, WIDTHS, captured, fits, printed, spell, start
from tinyqwen.trace.attention_maps import attention_maps, attention_weights
from tinyqwen.trace.capture import capture
from tinyqwen.trace.lens import lens
from tinyqwen.trace.routing import routers, routing
from tinyqwen.trace.views import SHADES, pooled, print_attention, print_bars, print_lens, print_map, print_route

BACKEND = backends.get("numpy")


@WIDTHS
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
@pytest.mark.parametrize("sequence", [0, 1])
def test_attention(name, width, sequence):
    config = CONFIGS[name]
    sequences, steps = captured(config, chunk=6)
    maps, ids, G = attention_maps(steps, 1), sequences[sequence].ids, config.num_key_value_heads
    text = printed(width, print_attention, maps, ids, spell, layer=1, head=4, kv_heads=G, sequence=sequence)
    lines = fits(text, width)
    assert "[b]" in text and "␛" in text, "what a token says is text"
    assert "h3 " in text and "h5 " in text and "h2 " not in text, "the heads that share a KV head, and no others"
    rows = [line for line in lines if line[:5].strip().isdecimal() and line[-1] in SHADES[1:]]
    assert len(rows) >= len(ids) - 1
    assert "(decode)" in text


def test_shades_stand_for_their_weights():
    weights_TS = np.float32([[1, 0, 0], [0.01, 0.99, 0], [0.05, 0.2, 0.75]])
    lines = printed(80, print_map, weights_TS, [1, 2, 3], str).splitlines()[1:]
    assert [line[18:].strip("\n") for line in lines] == ["██", "  ██", "░░▒▒██"]


def test_long_sequences_are_pooled_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    weights_TS = rng.dirichlet(np.ones(700), 60)
    for columns in (2, 50, 63):
        pool = pooled(weights_TS, columns)
        assert pool.shape == (60, columns)
        np.testing.assert_allclose(pool.sum(-1), 1)
        assert np.array_equal(pool[:, 0], weights_TS[:, 0])
    text = printed(80, print_map, weights_TS, list(range(700)), str)
    fits(text, 80)
    assert "the last 40 of 60 queries" in text and "700 keys in 62 columns" in text and " 699 699" in text


def test_bars_are_the_heaviest_keys_in_their_order():
    weights_S = np.zeros(30)
    weights_S[[3, 20, 7]] = 0.5, 0.3, 0.2
    lines = printed(80, print_bars, weights_S, list(range(30)), str, count=3).splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [["3", "3", "0.500"], ["7", "7", "0.200"], ["20", "20", "0.300"]]
    assert lines[0].count("█") > lines[2].count("█") > lines[1].count("█") and "0.000" in lines[3]


@WIDTHS
def test_attention_of_a_long_prompt_looks_at_its_end(width):
    (running,), steps = captured(dense_config(), attention_weights(0), prompts=((300, 0),))
    text = printed(width, print_attention, attention_maps(steps, 0), running.ids, str, layer=0, kv_heads=2)
    fits(text, width)
    assert "the last 256 queries, 304 keys" in text and "the last 40 of 256 queries" in text and "\n 303 " in text


@WIDTHS
@pytest.mark.parametrize("prompts", [((7, 0),), MANY])
@pytest.mark.parametrize("name", ["moe", "moe-normalised"])
def test_route(name, width, prompts):
    _, steps = captured(CONFIGS[name], prompts=prompts, chunk=6)
    route = routing(steps)[1]
    text = printed(width, print_route, route, spell)
    fits(text, width)
    load = route.load_E
    assert f"busiest {load.argmax()}: {load.max()}" in text and f"of {len(route.token_T)} tokens" in text
    first = f"{route.expert_TA[0, 0]}:{route.weight_TA[0, 0]:.2f}".replace("0.", ".")
    assert first in text and f"{route.gate_T[0]:.2f}" in text
    assert ("2/0" in text) == (len(prompts) > 1)


def test_ties_are_flagged():
    """A router of zeros finds all experts alike."""
    config = moe_config()
    weights = small_weights(config)
    weights.layers[1].mlp.gate.weight[:] = 0
    route = routing(capture(BACKEND, config, weights, start(config), routers))[1]
    assert route.tied_T.all() and printed(80, print_route, route, str).count(" tie ") == len(route.token_T)
    assert "8 idle" not in printed(80, print_route, route, str) and "5 idle" in printed(80, print_route, route, str)


@WIDTHS
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
def test_lens(name, width):
    config = CONFIGS[name]
    sequences, steps = captured(config, chunk=6)
    found = lens(BACKEND, config, small_weights(config), steps)
    for number, running in enumerate(sequences):
        text = printed(width, print_lens, found, running.ids, spell, sequence=number)
        lines = fits(text, width)
        mine = [one for one in found if one.sequence == number]
        rows = [line for line in lines if line.split()[0].isdecimal() and "later" not in line]
        assert len(rows) == config.num_hidden_layers
        across = (width - 6) // 19
        for layer, line in enumerate(rows):
            assert line.count("> ") == sum(bool(one.flip_L[layer]) for one in mine[:across])
            assert f"{mine[0].token_L[layer]}\ufffd␛[b]" in line and f" {mine[0].probability_L[layer]:.2f}" in line
