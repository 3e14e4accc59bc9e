"""Properties of the whole model, on every backend and every kind of layer."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend, Wrapper
from tests.helpers import (
    CONFIGS,
    Recording,
    assert_close,
    dense_config,
    greedy,
    host,
    logits_of,
    moe_config,
    on,
    small_weights,
    tokens,
    window_config,
)
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

# Another cut of the work sums the same float32 products in another order. Each of up to four layers adds some roundings
# of 6e-8, sums of 20 to 60 terms a few more, and attention scores of about 10 carry theirs through exp.
NOISE = 2e-5

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.mark.many
@every_config
@given(st.lists(st.integers(1, 13), max_size=4), st.integers(0, 9))
def test_any_cut_of_the_prompt_gives_the_same_logits(backend, config, cuts, seed):
    weights, ids = small_weights(config, backend), tokens(config, 14, seed)
    whole_NV = logits_of(backend, config, weights, ids, KVCache(backend, config))
    cache, edges = KVCache(backend, config), sorted({0, *cuts, 14})
    parts = [logits_of(backend, config, weights, ids[i:j], cache) for i, j in pairwise(edges)]
    assert cache.length == 14
    assert_close(np.concatenate(parts), whole_NV, NOISE)


@every_config
def test_decoding_token_by_token_equals_prefill(backend, config):
    weights, ids = small_weights(config, backend), tokens(config, 14)
    cache = KVCache(backend, config)
    decoded_NV = np.concatenate([logits_of(backend, config, weights, [token], cache) for token in ids])
    assert_close(decoded_NV, logits_of(backend, config, weights, ids, KVCache(backend, config)), NOISE)


@every_config
def test_a_step_without_caches_as_in_training_equals_one_with(backend, config):
    weights, ids = small_weights(config, backend), tokens(config, 14)
    cached_NV = logits_of(backend, config, weights, ids, KVCache(backend, config))
    assert_close(logits_of(backend, config, weights, ids), cached_NV, NOISE)


@every_config
def test_sequences_in_one_step_equal_each_alone(backend, config):
    """One decodes, one continues its prompt, one begins, one has no cache: all at once."""
    weights = small_weights(config, backend)
    lengths = [(9, 1), (5, 3), (0, 6), (None, 4)]  # tokens before, tokens now
    sequences = [tokens(config, (past or 0) + new, seed) for seed, (past, new) in enumerate(lengths)]

    def part(ids, past):
        if past is None:
            return ids, None
        cache = KVCache(backend, config)
        if past:
            logits_of(backend, config, weights, ids[:past], cache)
        return ids[past:], cache

    together = make_step([part(ids, past) for ids, (past, _) in zip(sequences, lengths)], all_logits=True)
    alone = [
        forward(backend, config, weights, make_step([part(ids, past)], all_logits=True))
        for ids, (past, _) in zip(sequences, lengths)
    ]
    assert_close(host(forward(backend, config, weights, together)), np.concatenate(host(alone)), NOISE)


@pytest.mark.parametrize("config", [dense_config(), moe_config()], ids=["dense", "moe"])
def test_a_broken_sequence_does_not_break_its_neighbours(backend, config):
    """A token whose embedding is NaN spoils its own sequence, and nothing else."""
    tensors = random_weights(config, scale=0.3)
    tensors["model.embed_tokens.weight"][40] = np.nan
    weights = on(backend, tensors)
    sound, broken = [1, 2, 3, 4], [5, 6, 40, 7]
    parts = [(broken, None), (sound, None), (broken, None)]
    with np.errstate(invalid="ignore"):
        logits_NV = host(forward(backend, config, weights, make_step(parts, all_logits=True)))
    assert_close(logits_NV[4:8], logits_of(backend, config, weights, sound), NOISE)
    assert np.isnan(logits_NV[[2, 3, 10, 11]]).all()


@every_config
def test_later_tokens_change_nothing_earlier(backend, config):
    weights, ids = small_weights(config, backend), tokens(config, 12)
    before_NV = logits_of(backend, config, weights, ids)
    ids[8:] = [(token + 1) % config.vocab_size for token in ids[8:]]
    after_NV = logits_of(backend, config, weights, ids)
    assert_close(after_NV[:8], before_NV[:8], NOISE)
    assert np.abs(after_NV[8:] - before_NV[8:]).max() > 0.01


def test_earlier_tokens_do_change_what_follows(backend):
    """Otherwise all of the above would hold for a model that does not look back."""
    config = dense_config()
    weights, ids = small_weights(config, backend), tokens(config, 12)
    before_NV = logits_of(backend, config, weights, ids)
    after_NV = logits_of(backend, config, weights, [(ids[0] + 1) % config.vocab_size, *ids[1:]])
    assert np.abs(after_NV[-1] - before_NV[-1]).max() > 0.01


@every_config
def test_setting_the_length_back_forgets_tokens(backend, config):
    weights, ids = small_weights(config, backend), tokens(config, 12)
    straight, astray = KVCache(backend, config), KVCache(backend, config)
    for cache in (straight, astray):
        logits_of(backend, config, weights, ids[:5], cache)
    logits_of(backend, config, weights, [0, 1, 2], astray)
    astray.length = 5
    first_NV, again_NV = (logits_of(backend, config, weights, ids[5:], cache) for cache in (straight, astray))
    np.testing.assert_array_equal(again_NV, first_NV)
    assert astray.length == 12


class Stumble(Exception):
    pass


class Stumbling(Wrapper):
    """Fails at the n-th operation."""

    def __init__(self, inner, at):
        super().__init__(inner)
        self.left = at

    def run(self, operation, arrays, settings, door=None):
        if self.left == 0:
            raise Stumble
        self.left -= 1
        return super().run(operation, arrays, settings, door)


@pytest.mark.many
@pytest.mark.parametrize("config", [window_config(), moe_config()], ids=["window", "moe"])
def test_a_step_that_fails_anywhere_has_not_happened(backend, config):
    """Whichever operation is interrupted, no cache has moved on, and the step can be repeated."""
    weights, ids = small_weights(config, backend), tokens(config, 9)

    def second_step():
        """Two sequences: one has a past, one begins."""
        caches = KVCache(backend, config), KVCache(backend, config)
        logits_of(backend, config, weights, ids[:4], caches[0])
        return caches, lambda: make_step([(ids[4:6], caches[0]), (ids[6:], caches[1])])

    watching = Recording(backend)
    _, step = second_step()
    expected_NV = host(forward(watching, config, weights, step()))
    assert len(watching.seen) > 50
    caches, step = second_step()
    for n in range(len(watching.seen)):
        with pytest.raises(Stumble):
            forward(Stumbling(backend, n), config, weights, step())
        assert [cache.length for cache in caches] == [4, 0], f"after a failure at operation {n}"
    np.testing.assert_array_equal(host(forward(backend, config, weights, step())), expected_NV)
    assert [cache.length for cache in caches] == [6, 3]


@pytest.mark.many
def test_the_cache_grows_without_losing_anything(backend):
    """From 250 to 600 tokens it doubles twice; one that was large from the start says the same."""
    config = window_config(num_hidden_layers=2, layer_types=("full_attention", "sliding_attention"))
    weights, ids = small_weights(config, backend), tokens(config, 600)
    large, growing = KVCache(backend, config), KVCache(backend, config)
    large.reserve(600)
    capacities = []
    for start in range(0, 600, 50):
        expected_NV = logits_of(backend, config, weights, ids[start : start + 50], large)
        grown_NV = logits_of(backend, config, weights, ids[start : start + 50], growing)
        assert_close(grown_NV, expected_NV, NOISE)  # the larger ring of one is cut at other places
        capacities.append(growing.capacity)
    assert sorted(set(capacities)) == [256, 512, 1024] and large.capacity == 1024
    of_a_layer = config.kv_values_per_token * 4 // 2
    assert growing.nbytes == (1024 + 4 - 1 + 50) * of_a_layer


def test_attention_gets_views_of_the_cache_and_not_copies(backend):
    """Copying the keys of a long text for every token would cost more than attending to them."""
    config = dense_config()
    cache, watching = KVCache(backend, config), Recording(backend)
    logits_of(watching, config, small_weights(config, backend), tokens(config, 5), cache)
    for layer, (keys, values) in enumerate(out for name, out in watching.seen if name == "update_cache"):
        cache.layers[layer][:] = 7
        assert (host(keys[0]) == 7).all() and (host(values[0]) == 7).all()


@pytest.mark.parametrize("window, same", [(14, True), (15, True), (13, False)])
def test_a_window_as_long_as_the_text_is_full_attention(backend, window, same):
    full, windowed = dense_config(), window_config(sliding_window=window)
    weights, ids = small_weights(full, backend), tokens(full, 14)
    full_NV, windowed_NV = (logits_of(backend, config, weights, ids) for config in (full, windowed))
    assert_close(windowed_NV[:13], full_NV[:13], NOISE)
    off = np.abs(windowed_NV[13] - full_NV[13]).max() / np.abs(full_NV).max()
    assert (off < NOISE) == same


class OneType(Wrapper):
    """Asserts the floating point type of every operation's output."""

    def run(self, operation, arrays, settings, door=None):
        out = super().run(operation, arrays, settings, door)

        def check(value):
            if isinstance(value, (tuple, list)):
                for item in value:
                    check(item)
            elif value.dtype.kind == "f":
                assert value.dtype == self.dtype, f"{operation.name} returns {value.dtype}"

        check(out)
        return out


def prefill_and_decode(backend, config, weights):
    cache, ids = KVCache(backend, config), tokens(config, 9)
    return np.concatenate([logits_of(backend, config, weights, part, cache) for part in (ids[:7], ids[7:8], ids[8:])])


@every_config
def test_every_operation_returns_the_backends_type(backend, config):
    """float64 by accident costs twice the memory and half the speed, and nobody notices."""
    logits_NV = prefill_and_decode(OneType(backend), config, small_weights(config, backend))
    assert logits_NV.dtype == backend.dtype


@every_config
def test_float64_is_float64_everywhere_and_tells_noise_from_bugs(backend, config):
    double = Backend(np, dtype=np.float64)
    weights = tree({name: tensor.astype(np.float64) for name, tensor in random_weights(config, scale=0.3).items()})
    double_NV = prefill_and_decode(OneType(double), config, weights)
    assert double_NV.dtype == np.float64
    assert_close(prefill_and_decode(backend, config, small_weights(config, backend)), double_NV, NOISE)


@every_config
def test_weights_need_not_be_contiguous(backend, config):
    """Transposed files, slices of fused matrices, memory maps with gaps."""

    def with_gaps(tensor):
        wide = np.zeros([2 * size for size in tensor.shape], np.float32)
        wide[tuple(slice(None, None, 2) for _ in tensor.shape)] = tensor
        return backend.xp.asarray(wide)[tuple(slice(None, None, 2) for _ in tensor.shape)]

    tensors, ids = random_weights(config, scale=0.3), tokens(config, 9)
    expected_NV = logits_of(backend, config, small_weights(config, backend), ids)
    for layout in (with_gaps, lambda tensor: backend.xp.asarray(np.asfortranarray(tensor))):
        weights = tree({name: layout(tensor) for name, tensor in tensors.items()})
        assert_close(logits_of(backend, config, weights, ids), expected_NV, NOISE)


def test_logits_are_computed_for_the_rows_asked_for_only(backend):
    """A prompt of T tokens needs one row of 151,936 logits, not T."""
    config = dense_config()
    weights, ids, more = small_weights(config, backend), tokens(config, 7), tokens(config, 5, 1)
    last_NV = host(forward(backend, config, weights, make_step([(ids, None), (more, None)])))
    all_NV = host(forward(backend, config, weights, make_step([(ids, None), (more, None)], all_logits=True)))
    assert last_NV.shape == (2, config.vocab_size) and all_NV.shape == (12, config.vocab_size)
    assert_close(last_NV, all_NV[[6, 11]], NOISE)


def test_a_tied_head_is_the_embedding_table(backend):
    config = dense_config(tie_word_embeddings=True)
    tensors = random_weights(config, scale=0.3)
    tensors = {name: backend.xp.asarray(tensor) for name, tensor in tensors.items()}
    untied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    ids = tokens(config, 5)
    np.testing.assert_array_equal(
        logits_of(backend, config, tree(tensors), ids),
        logits_of(backend, dense_config(), tree(untied), ids),
    )


def test_greedy_text_is_the_same_in_one_prefill_and_through_the_cache(backend):
    """The last argmax of a fresh prefill of everything is what decoding chose."""
    config = moe_config()
    weights, prompt = small_weights(config, backend), tokens(config, 5)
    ids = prompt + greedy(backend, config, weights, prompt, 20)
    logits_NV = logits_of(backend, config, weights, ids)
    assert logits_NV[4:-1].argmax(axis=1).tolist() == ids[5:]
