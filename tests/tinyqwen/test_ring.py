"""Sliding layers keep their last tokens in a ring: the same numbers as with all, in memory that does not grow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend
from tests.helpers import assert_close, host, logits_of, small_weights, tokens, window_config
from tests.tinyqwen.test_model import NOISE, Stumble, Stumbling
from tinyqwen.config import FULL, SLIDING
from tinyqwen.kv_cache import KV_FORMATS, KVCache, move, stretches
from tinyqwen.model import forward
from tinyqwen.plan import longest_context, memory
from tinyqwen.step import make_step

TEXT = 60
WINDOW = st.integers(1, 20)
CUTS = st.lists(st.integers(1, TEXT - 1), max_size=8)


def config_of(window, **changes):
    return window_config(sliding_window=window, **changes)


# ---- slots --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 50), st.data())
def test_stretches_are_positions_in_order(slots, start, data):
    count = data.draw(st.integers(1, slots))
    kv_2GNK = np.broadcast_to(np.arange(slots)[:, None], (2, 3, slots, 4))
    views = stretches(kv_2GNK, start, start + count)
    assert len(views) == 1 + (start % slots + count > slots)
    found = np.concatenate(views, axis=2)[0, 0, :, 0].tolist()
    assert found == [position % slots for position in range(start, start + count)]


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 50), st.data())
def test_moving_to_a_larger_ring_keeps_every_position(slots, more, start, data):
    stop = start + data.draw(st.integers(1, slots))
    old_2GSK, new_2GNK = np.zeros((2, 1, slots, 1)), np.full((2, 1, slots + more, 1), np.nan)
    for position in range(start, stop):
        old_2GSK[..., position % slots, :] = position
    move(old_2GSK, new_2GNK, start, stop)
    for position in range(start, stop):
        assert (new_2GNK[..., position % (slots + more), :] == position).all()


# ---- the same numbers ---------------------------------------------------------------------------------------------


@pytest.mark.many
@given(WINDOW, CUTS, st.integers(0, 9))
def test_any_cut_of_a_text_equals_attention_to_all_of_it_behind_a_mask(backend, window, cuts, seed):
    """Without a cache every key is there and the mask does it all; the ring goes round several times."""
    config = config_of(window)
    weights, ids = small_weights(config, backend), tokens(config, TEXT, seed)
    cache, parts = KVCache(backend, config), []
    for start, stop in pairwise(sorted({0, *cuts, TEXT})):
        parts.append(logits_of(backend, config, weights, ids[start:stop], cache))
    assert_close(np.concatenate(parts), logits_of(backend, config, weights, ids), NOISE)


@pytest.mark.parametrize("format", KV_FORMATS)
@pytest.mark.parametrize("window", [1, 2, 7, 31])
def test_a_ring_in_every_format_equals_a_cache_that_never_goes_round(backend, format, window):
    config = config_of(window)
    weights, ids = small_weights(config, backend), tokens(config, TEXT)
    ring, long = KVCache(backend, config, format), KVCache(backend, config, format)
    long.reserve(TEXT, step=TEXT)
    for start, stop in pairwise([0, 9, 10, 11, 20, 33, *range(34, TEXT + 1)]):
        expected_NV = logits_of(backend, config, weights, ids[start:stop], long)
        # Queries and weights are rounded to bfloat16 where the cache is that coarse, each part's on its own.
        assert_close(
            logits_of(backend, config, weights, ids[start:stop], ring), expected_NV, NOISE if format == "f32" else 0.02
        )
    assert [layer.shape[2] for layer in long.layers[1:]] == [window - 1 + TEXT] * 2
    assert [layer.shape[2] for layer in ring.layers[1:]] == [window - 1 + 13] * 2


def test_what_was_forgotten_is_never_read(backend):
    """NaN in every slot that no visible token is in: before the ring is full, and behind what it must hold."""
    config = config_of(5)
    weights, ids = small_weights(config, backend), tokens(config, TEXT)
    expected_NV, cache = logits_of(backend, config, weights, ids), KVCache(backend, config)
    for start, stop in pairwise([0, 3, 11, 12, 13, 19, 27, *range(28, TEXT + 1)]):
        cache.reserve(stop)
        for layer in cache.layers[1:]:
            slots = layer.shape[2]
            seen = {position % slots for position in range(max(0, start - 4), start)}
            layer[:, :, [slot for slot in range(slots) if slot not in seen]] = np.nan
        assert_close(logits_of(backend, config, weights, ids[start:stop], cache), expected_NV[start:stop], NOISE)


def test_several_sequences_of_which_some_go_round(backend):
    config = config_of(6)
    weights, lengths = small_weights(config, backend), [(30, 1), (0, 4), (13, 5), (5, 2)]
    ids = [tokens(config, past + new, seed) for seed, (past, new) in enumerate(lengths)]
    parts = []
    for text, (past, _) in zip(ids, lengths):
        cache = KVCache(backend, config)
        for start in range(0, past, 4):
            logits_of(backend, config, weights, text[start : min(start + 4, past)], cache)
        parts.append((text[past:], cache))
    together_NV = host(forward(backend, config, weights, make_step(parts, all_logits=True)))
    alone = [logits_of(backend, config, weights, text)[past:] for text, (past, _) in zip(ids, lengths)]
    assert_close(together_NV, np.concatenate(alone), NOISE)


def test_a_step_that_fails_while_the_ring_goes_round_has_not_happened(backend):
    """It has written over what it could not see; whoever asks again, or for less, or goes back, gets what is right."""
    config = config_of(5, num_hidden_layers=2, layer_types=(SLIDING, FULL))
    weights, ids = small_weights(config, backend), tokens(config, 30)
    expected_NV = logits_of(backend, config, weights, ids)
    cache = KVCache(backend, config)
    for start, stop in pairwise([0, 7, 13, 19]):
        logits_of(backend, config, weights, ids[start:stop], cache)
    for n in range(0, 60, 3):
        for stop in (20, 25, 30):
            with pytest.raises(Stumble):
                forward(Stumbling(backend, n % 20), config, weights, make_step([(ids[19:stop], cache)]))
            assert cache.length == 19
    parts = [logits_of(backend, config, weights, ids[start:stop], cache) for start, stop in ((19, 21), (21, 30))]
    assert_close(np.concatenate(parts), expected_NV[19:], NOISE)


class Poor(Backend):
    """Has memory for so many arrays."""

    left = 10**9

    def empty(self, shape, dtype=None):
        if not self.left:
            raise MemoryError
        self.left -= 1
        return super().empty(shape, dtype)


@pytest.mark.parametrize("rich", [0, 1, 2])
def test_where_memory_gives_out_nothing_is_lost(rich):
    """Growing fails at some layer; smaller steps go on as if nobody had asked."""
    backend, config = Poor(), config_of(300)
    weights, ids = small_weights(config), tokens(config, 280)
    cache, expected_NV = KVCache(backend, config), logits_of(backend, config, weights, ids)
    parts = [logits_of(backend, config, weights, ids[:240], cache)]
    backend.left = rich
    with pytest.raises(MemoryError):
        cache.reserve(280)
    assert cache.length == 240 and cache.capacity == 256
    parts.append(logits_of(backend, config, weights, ids[240:250], cache))
    backend.left = 10**9
    parts.append(logits_of(backend, config, weights, ids[250:], cache))
    assert_close(np.concatenate(parts), expected_NV, NOISE)


# ---- memory -------------------------------------------------------------------------------------------------------


def test_memory_of_a_window_does_not_grow_with_the_text():
    backend = Backend(np)
    config = config_of(40, num_hidden_layers=2, layer_types=(SLIDING, SLIDING))
    weights, cache, sizes = small_weights(config, backend), KVCache(backend, config), set()
    for _ in range(12):
        logits_of(backend, config, weights, tokens(config, 100), cache)
        sizes.add(cache.nbytes)
    assert sizes == {(40 - 1 + 100) * cache.bytes_per_token} and cache.length == 1200
    assert cache.bytes_at(1200, step=100) == cache.nbytes


def test_a_plan_knows_it():
    full, half = (config_of(100, layer_types=types) for types in [(FULL,) * 3, (FULL, SLIDING, SLIDING)])
    at_1000, at_5000 = memory(half, 1000), memory(half, 5000)
    of_a_layer = memory(full, 1).kv // 3
    assert at_5000.kv - at_1000.kv == 4000 * of_a_layer
    assert at_5000.windows == at_1000.windows == 2 * (100 - 1 + 256) * of_a_layer
    for config, one in ((full, memory(full, 5000)), (half, at_5000)):
        room = one.total + 10**6
        longest = longest_context(one, 5000, room)
        assert memory(config, longest).total <= room < memory(config, longest + 1).total
    sliding = memory(config_of(100, layer_types=(SLIDING,) * 3), 5000)
    assert longest_context(sliding, 5000, sliding.total) == 5000 and longest_context(sliding, 5000, 1000) == 0


# ---- going back ---------------------------------------------------------------------------------------------------


@pytest.mark.many
@given(WINDOW, st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_the_way_back_ends_where_the_ring_does(backend, window, steps, data):
    """Either a length is refused, or going on from there is right."""
    config = config_of(window, num_hidden_layers=2, layer_types=(SLIDING, FULL))
    weights, ids = small_weights(config, backend), tokens(config, sum(steps) + 2)
    cache = KVCache(backend, config)
    for step in steps:
        logits_of(backend, config, weights, ids[cache.length : cache.length + step], cache)
    back = data.draw(st.integers(0, cache.length), "back to")
    if not cache.keeps(back):
        with pytest.raises(ValueError, match=rf"from {cache.length} tokens to {back}: .* set its length to 0"):
            cache.length = back
        assert cache.length == sum(steps)
        back = 0
    cache.length = back
    again = [logits_of(backend, config, weights, ids[back : back + 1], cache)]
    again.append(logits_of(backend, config, weights, ids[back + 1 :], cache))
    assert_close(np.concatenate(again), logits_of(backend, config, weights, ids)[back:], NOISE)


def test_as_many_tokens_as_the_longest_step_can_be_taken_back():
    backend, config = Backend(np), config_of(4)
    weights, cache = small_weights(config, backend), KVCache(backend, config)
    for _ in range(5):
        logits_of(backend, config, weights, tokens(config, 8), cache)
    assert [cache.keeps(length) for length in (0, 1, 31, 32, 33, 40)] == [True, False, False, True, True, True]
