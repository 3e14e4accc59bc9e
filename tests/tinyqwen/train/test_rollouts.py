"""The model answers: sampled as it says, told what it is worth, and learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from backends import get
from tests.helpers import assert_close, dense_config, moe_config
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.model import forward
from tinyqwen.train import grpo, online_dpo, reward
from tinyqwen.train.chats import pack
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.reference import frozen
from tinyqwen.train.rollouts import (
    Answer,
    Policy,
    Task,
    Tasks,
    answered,
    answers,
    chosen_lines,
    figures,
    likeliest,
    verified,
)
from tinyqwen.train.training import Training
from tinyqwen.train.verifiers import Verifier
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.training
CONFIG = dense_config(max_position_embeddings=64)
STOP = 7
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]


def tasks(verifier=None):
    return [Task(ids, [{"role": "user", "content": str(ids)}], verifier) for ids in PROMPTS]


def policy(backend, config=CONFIG, weights=None):
    weights = weights or tree(random_weights(config, 0, scale=0.3))
    return Policy(backend, config, weights, frozenset([STOP]), 39, lambda ids: " ".join(map(str, ids)))


@pytest.mark.parametrize("config", [CONFIG, moe_config(max_position_embeddings=64)], ids=["dense", "moe"])
def test_log_probabilities_are_those_that_training_sees(backend, config):
    """Step by step through caches when sampled; all at once when learnt."""
    asking = policy(backend, config, tree(random_weights(config, 0, scale=0.2)))
    given = answers(asking, [task for task in tasks() for _ in range(4)], (1, 2), tokens=9)
    step, token_N, _ = pack([answer.example for answer in given])
    seen_N = log_probability(backend, forward(backend, config, asking.weights, step), token_N)
    assert_close(np.concatenate([answer.log_p_N for answer in given]), seen_N, 2e-4)


def test_answers_end_where_they_should():
    given = answers(policy(get("numpy")), [task for task in tasks() for _ in range(20)], (0, 0), tokens=6)
    for answer, prompt in zip(given, np.repeat(np.arange(3), 20)):
        said = answer.example.ids[len(PROMPTS[prompt]) :]
        assert answer.example.prompt == PROMPTS[prompt] and len(answer.log_p_N) == len(said) <= 6
        assert answer.finished == (said[-1] == STOP) and STOP not in said[:-1] and max(said) < 39
        assert answer.text == " ".join(map(str, said[:-1] if answer.finished else said))
        assert answer.finished or len(said) == 6
    assert {answer.finished for answer in given} == {True, False}


def test_the_seed_decides_and_company_does_not():
    asking, asked = policy(get("numpy")), tasks() * 3
    first, second, other = (answers(asking, asked, seed, tokens=5) for seed in ((1, 0), (1, 0), (1, 1)))
    assert [x.text for x in first] == [x.text for x in second] != [x.text for x in other]


def test_tokens_are_sampled_as_likely_as_they_are():
    """The first token of 4,000 answers against the model's own distribution: 5 standard deviations."""
    backend = get("numpy")
    asking = policy(backend)._replace(vocabulary=41)
    given = answers(asking, tasks()[:1] * 4000, (0, 0), tokens=1)
    step, _, _ = pack([given[0].example])
    logits_V = forward(backend, CONFIG, asking.weights, step)[0].astype(np.float64)
    p_V = np.exp(logits_V - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()
    found_V = np.bincount([answer.example.ids[-1] for answer in given], minlength=41) / 4000
    assert (np.abs(found_V - p_V) <= 5 * np.sqrt(p_V * (1 - p_V) / 4000) + 1e-3).all()


# ---- judging ------------------------------------------------------------------------------------------------------


def answer(text, finished=True, ids=(1, 2)):
    return Answer(answered(PROMPTS[0], list(ids)), np.zeros(len(ids), np.float32), text, finished)


def test_what_was_cut_off_earns_nothing():
    asked = [tasks(Verifier("exact", "a"))[0]] * 3
    given = [answer("a"), answer("a", finished=False), answer("b")]
    assert verified(asked, given).tolist() == [1, 0, 0]
    assert figures(np.array([[1.0, 0, 0]]), given) == {"reward": 1 / 3, "differ": 1, "finished": 2 / 3, "length": 2}


def test_a_reward_model_says_the_last_tokens_score(backend):
    tensors = reward.with_score(random_weights(CONFIG, 0, scale=0.3), seed=1)
    given = [answer("", ids=(1, 2)), answer("", ids=(3,)), answer("", False, ids=(4, 5, 6))]
    found = reward.judge(backend, CONFIG, tensors)(tasks(), given)
    hidden = {**tensors, "lm_head.weight": np.eye(CONFIG.hidden_size, dtype=np.float32)}
    for n in (0, 1):
        state_1D = forward(backend, CONFIG, tree(hidden), reward.ends([given[n].example]))
        assert found[n] == pytest.approx(float(state_1D[0] @ tensors[reward.SCORE][0]), rel=1e-4, abs=1e-5)
    assert found[2] < min(found[:2])


def test_rejection_sampling_keeps_the_best_and_the_pairs_that_differ():
    given = [answer(text) for text in "abcdef"]
    chats, pairs = chosen_lines(tasks(), given, np.array([[0, 1], [0.5, 0.5], [0, 0.2]]), 0.5)
    assert [chat["messages"][-1]["content"] for chat in chats] == ["b", "c"]
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("b", "a"), ("f", "e")]


# ---- learning -----------------------------------------------------------------------------------------------------


def practised(kind, settings, judge=None, seed=0):
    """A run's first step: (report, stage)."""
    backend, tensors = get("numpy"), initial_weights(CONFIG, seed)
    asking = policy(backend, weights=tree(tensors))
    before = frozen(backend, CONFIG, tree({name: x.copy() for name, x in tensors.items()}))
    data = Tasks(tasks(Verifier("rules", {"matches": "[1-9]$"})), 99)
    stage = kind.stage(data, settings, asking, judge or verified, before)
    return Training(backend, CONFIG, tensors, start(backend, tensors), stage, settings)


def dice(asked, given):
    """Any rewards: of what was said."""
    return np.array([sum(answer.example.ids) % 5 for answer in given], float)


SHORT = {"steps": 4, "batch": 3, "group": 6, "answer": 5, "warmup": 0, "lr": 0.01}


@pytest.mark.parametrize("kind", [online_dpo, grpo])
def test_equal_rewards_teach_nothing(kind):
    training = practised(kind, kind.Settings(**SHORT), lambda asked, given: np.ones(len(given)))
    before = {name: x.copy() for name, x in training.tensors.items()}
    report = training.step()
    assert (report.figures["differ"], report.figures["reward"], report.norm, report.tokens) == (0, 1, 0, 0)
    for name, tensor in before.items():
        np.testing.assert_array_equal(training.tensors[name], tensor)
    assert training.state.step == 0 and training.number == 1


@pytest.mark.parametrize("weights", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("kind", [online_dpo, grpo])
def test_how_a_step_is_cut_changes_nothing(kind, weights):
    if kind is online_dpo and weights != "dapo":
        pytest.skip("online DPO weights no tokens")
    extra = {"weights": weights, "beta": 0.1} if kind is grpo else {}
    runs = [practised(kind, kind.Settings(part=part, **SHORT, **extra), dice) for part in (0, 15)]
    first, second = (run.step() for run in runs)
    assert second.loss == pytest.approx(first.loss, rel=1e-4, abs=1e-6)
    assert second.norm == pytest.approx(first.norm, rel=1e-3)
    for name, value in first.figures.items():
        assert second.figures[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_the_first_update_on_samples_is_reinforce():
    """The ratio is 1: the loss is minus the weighted mean of the advantages, and no token is away from where it was."""
    settings = grpo.Settings(**SHORT, updates=3)
    training = practised(grpo, settings, dice)
    lessons = training.stage(0)
    assert len(list(lessons.updates)) == 3
    (lesson,) = lessons.updates[0]
    log_p_N = log_probability(
        training.backend, forward(training.backend, CONFIG, training.weights, lesson.step), lesson.token_N
    )
    loss, coefficient_N, found = lesson.loss(log_p_N)
    assert found["away"] == 0
    assert loss == pytest.approx(float(coefficient_N.sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("weights", ["dapo", "grpo", "dr_grpo"])
def test_weights_of_tokens(weights):
    given = [answer("", ids=[1] * length) for length in (1, 2, 5, 4)]
    found = grpo.weighted(given, np.array([[0, 1.0], [3, 1]]), grpo.Settings(weights=weights, answer=8))
    totals = [each.weight * len(each.old_N) for each in found]
    expected = {"dapo": [1 / 12, 2 / 12, 5 / 12, 4 / 12], "grpo": [1 / 4] * 4,
                "dr_grpo": [1 / 32, 2 / 32, 5 / 32, 4 / 32]}[weights]  # fmt: skip
    np.testing.assert_allclose(totals, expected)
    size = [abs(each.advantage) for each in found]
    times = size[2] / size[0]
    assert times == pytest.approx(2 if weights == "dr_grpo" else 1, abs=1e-3), "with the deviation, all groups count"


def test_online_pairs_begin_at_ln_2():
    training = practised(online_dpo, online_dpo.Settings(**SHORT), dice)
    report = training.step()
    assert report.loss == pytest.approx(np.log(2), abs=1e-6) and report.figures["margin"] == 0


def test_asking_for_the_likeliest_answer_leaves_the_prompt_alone():
    ids = [3, 1, 4]
    text = likeliest(policy(get("numpy")), ids, tokens=5)
    assert ids == [3, 1, 4] and 0 < len(text.split()) <= 5
