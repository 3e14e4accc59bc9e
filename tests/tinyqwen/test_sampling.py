"""Sampling: each filter's definition, ties included. tests/oracle compares the kept sets with transformers' own."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.sampling import Sampling, filtered, read_generation_config, sample, with_flags

NUMPY = backends.get("numpy")
# Few different values, so that ties are the rule and not the exception.
logit_lists = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=30)
NOBODY = np.array([], int)


def kept(logits, seen=NOBODY, **settings):
    out = filtered(NUMPY, np.float32(logits), np.array(seen, int), Sampling(do_sample=True, **settings))
    return {int(token) for token in np.flatnonzero(out > -np.inf)}


@given(logit_lists, st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest_and_all_ties_with_the_last(logits, k):
    threshold = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    assert kept(logits, top_k=k) == {n for n, logit in enumerate(logits) if logit >= threshold}


@given(logit_lists, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    tokens = kept(logits, top_p=p)
    probability = np.exp(np.float64(logits) - max(logits))
    probability /= probability.sum()
    mass = probability[list(tokens)].sum()
    lightest = min(probability[list(tokens)])
    assert mass >= p - 1e-5  # it reaches p,
    assert mass - lightest < p + 1e-5  # not without its lightest member,
    assert all(probability[n] <= lightest + 1e-9 for n in range(len(logits)) if n not in tokens)  # and is the likeliest


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    assert kept(np.log([0.5, 0.25, 0.125, 0.125]), top_p=0.75) == {0, 1}
    assert kept(np.log([0.5, 0.25, 0.125, 0.125]), top_p=0.76) in ({0, 1, 2}, {0, 1, 3})
    assert kept([1.0, 9.0, 1.0], top_p=0.01) == {1}


def test_of_equal_tokens_top_p_keeps_the_higher_number():
    assert kept([0.0, 0.0, 0.0, 0.0], top_p=0.5) == {2, 3}


@given(logit_lists, st.floats(0.01, 1))
def test_min_p_compares_with_the_likeliest(logits, p):
    ratio = np.exp(np.float32(logits) - np.float32(max(logits)))
    tokens = kept(logits, min_p=p)
    assert {n for n in range(len(logits)) if ratio[n] > p * 1.0001} <= tokens  # away from rounding at the threshold
    assert tokens <= {n for n in range(len(logits)) if ratio[n] > p * 0.9999}


def test_repetition_penalty_counts_each_token_once_and_acts_on_both_signs():
    logits = np.float32([2, -2, 2, -2])
    out = filtered(NUMPY, logits, np.array([0, 1]), Sampling(repetition_penalty=2.0))
    assert out.tolist() == [1, -4, 2, -2]
    assert logits.tolist() == [2, -2, 2, -2], "the caller's logits are not touched"


def test_greedy_obeys_the_repetition_penalty_and_nothing_else():
    logits = np.float32([3, 2.9, 1])
    greedy = Sampling(repetition_penalty=1.5)
    assert sample(NUMPY, logits, np.array([0]), sampling=greedy, uniform=0.0) == 1
    assert sample(NUMPY, logits, NOBODY, sampling=greedy, uniform=0.0) == 0


@given(logit_lists, st.floats(0, 1, exclude_max=True), st.integers(0, 5), st.floats(0.05, 1))
def test_a_removed_token_is_never_chosen_whatever_the_dice_say(logits, uniform, k, p):
    sampling = Sampling(do_sample=True, top_k=k, top_p=p)
    token = int(sample(NUMPY, np.float32(logits), NOBODY, sampling=sampling, uniform=uniform))
    assert token in kept(logits, top_k=k, top_p=p)


def test_tokens_come_as_often_as_their_probability_says():
    probability = np.float32([0.5, 0.3, 0.2])
    dice = (np.arange(1000) + 0.5) / 1000  # an even comb instead of chance: the counts are exact
    sampling = Sampling(do_sample=True)
    tokens = [int(sample(NUMPY, np.log(probability), NOBODY, sampling=sampling, uniform=u)) for u in dice]
    assert np.bincount(tokens).tolist() == [500, 300, 200]


def test_a_large_vocabulary_of_equal_logits_can_be_sampled_to_its_last_token():
    # In float32 the sum of 151,646 probabilities is not exactly 1; dice close to 1 must not fall off the end.
    token = sample(NUMPY, np.zeros(151646, np.float32), NOBODY, sampling=Sampling(do_sample=True), uniform=1 - 2**-53)
    assert token == 151645


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"temperature": -0.1}, ["temperature"]),
        ({"temperature": float("nan")}, ["temperature"]),
        ({"temperature": float("inf")}, ["temperature"]),
        ({"top_p": 0.0, "top_k": -1}, ["top_p", "top_k"]),
        ({"top_p": 1.01}, ["top_p"]),
        ({"min_p": -0.1}, ["min_p"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty"]),
    ],
)
def test_values_out_of_range_are_refused_by_name(flags, names):
    with pytest.raises(UsageError) as error:
        with_flags(Sampling(), **flags)
    assert all(name in str(error.value) for name in names)


def test_flags_turn_sampling_on_and_temperature_zero_turns_it_off():
    assert with_flags(Sampling(), top_p=0.9).do_sample
    assert not with_flags(Sampling(do_sample=True, temperature=0.7), temperature=0).do_sample
    assert with_flags(Sampling(do_sample=True, temperature=0.7, top_k=20)) == Sampling(True, 0.7, 20)


@pytest.mark.parametrize(("name", "penalty"), [("Qwen2-0.5B-Instruct", 1.1), ("Qwen2.5-7B-Instruct", 1.05)])
def test_published_generation_configs(data, tmp_path, name, penalty):
    text = (data / "configs" / f"{name}.generation_config.json").read_text()
    (tmp_path / "generation_config.json").write_text(text)
    config = read_generation_config(tmp_path)
    assert config.sampling == Sampling(True, 0.7, 20, 0.8, 0.0, penalty)
    assert config.eos_token_id == (151645, 151643)


def test_without_a_file_and_for_base_models_decoding_is_greedy(tmp_path):
    assert read_generation_config(tmp_path).sampling == Sampling()
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": false, "eos_token_id": 151643, "max_new_tokens": 2048}'
    )
    config = read_generation_config(tmp_path)
    assert (config.sampling, config.eos_token_id, config.max_new_tokens) == (Sampling(), (151643,), 2048)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"temperature": "hot", "do_sample": true}', '{"max_new_tokens": 0}', "\xff"]
)
def test_broken_generation_configs_are_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFilesError, match=r"generation_config\.json"):
        read_generation_config(tmp_path)


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.none())


@given(st.dictionaries(st.sampled_from(["temperature", "top_k", "top_p", "eos_token_id", "do_sample"]), json_values))
def test_any_generation_config_is_read_or_refused(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("generation")
    (folder / "generation_config.json").write_text(json.dumps(raw))
    try:
        read_generation_config(folder)
    except ModelFilesError as error:
        assert "\n" not in str(error)
