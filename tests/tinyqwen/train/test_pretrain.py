"""A model learns; how a step is cut into parts changes nothing; settings that cannot be are refused."""

from __future__ import annotations

import numpy as np
import pytest

from backends import get
from tests.helpers import assert_close, dense_config, moe_config
from tinyqwen.errors import UsageError
from tinyqwen.train.data import Chunks
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.pretrain import Pretraining, Settings
from tinyqwen.weights import tensor_shapes

pytestmark = pytest.mark.training

PATTERN = [[3, 1, 4, 1, 5, 9, 2, 6] * 4, [2, 7, 1, 8, 2, 8] * 5]  # learnt by heart in some dozen steps


def training(backend, config, **settings):
    settings = Settings(**{"steps": 60, "tokens": 64, "length": 16, "lr": 0.01, "warmup": 5, **settings})
    tensors = initial_weights(config, settings.seed)
    chunks = Chunks(PATTERN, end=0, length=settings.length, seed=settings.seed)
    return Pretraining(backend, config, tensors, start(backend, tensors), chunks, settings)


@pytest.mark.parametrize("config", [dense_config(tie_word_embeddings=True), moe_config()], ids=["dense", "moe"])
def test_a_text_is_learnt_by_heart(backend, config):
    run = training(backend, config)
    reports = [run.step() for _ in range(60)]
    assert reports[0].loss == pytest.approx(np.log(config.vocab_size), rel=0.1), "at first all tokens are as likely"
    assert reports[-1].loss < 0.35
    assert [report.step for report in reports] == list(range(1, 61))
    assert [reports[n].lr for n in (0, 20, 59)] == pytest.approx([0.01 / 5, 0.01, 0.001])
    assert reports[-1].balance == pytest.approx(config.num_experts_per_tok, rel=0.2)


@pytest.mark.parametrize("config", [dense_config(), moe_config(router_aux_loss_coef=0.0)], ids=["dense", "moe"])
@pytest.mark.parametrize("changes", [{"part": 16}, {"part": 48}, {"recompute": True}, {"part": 32, "recompute": True}])
def test_how_a_step_is_cut_changes_nothing(config, changes):
    """Sums in another order. (Balance is a part's own, as in transformers: its loss is left out here.)"""
    double = get("numpy")
    plain, cut = training(double, config), training(double, config, **changes)
    for _ in range(2):
        first, second = plain.step(), cut.step()
        assert second.loss == pytest.approx(first.loss, rel=1e-5)
        assert second.norm == pytest.approx(first.norm, rel=1e-4)
    for name, tensor in plain.state.m.items():
        assert_close(cut.state.m[name], tensor, 1e-3)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(backend):
    config = dense_config()
    runs = [training(backend, config, seed=seed) for seed in (1, 1, 2)]
    for run in runs:
        for _ in range(3):
            run.step()
    for name in tensor_shapes(config):
        np.testing.assert_array_equal(runs[0].tensors[name], runs[1].tensors[name])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(runs[0].tensors[name], runs[2].tensors[name])


def test_a_step_that_fails_has_not_happened(backend):
    run = training(backend, dense_config())
    run.step()
    run.tensors["model.norm.weight"][0] = np.nan
    before = {name: tensor.copy() for name, tensor in run.tensors.items()}
    with pytest.raises(FloatingPointError, match="not finite"):
        run.step()
    assert run.state.step == 1
    for name, tensor in before.items():
        np.testing.assert_array_equal(run.tensors[name], tensor)


def test_initial_weights_keep_the_size_of_what_passes():
    config = dense_config(hidden_size=64, intermediate_size=128, num_hidden_layers=8)
    tensors = initial_weights(config, 0)
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert (tensors["model.norm.weight"] == 1).all() and not tensors["model.layers.0.self_attn.q_proj.bias"].any()


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"steps": 0}, "steps must be at least 1, and finite, is 0"),
        ({"tokens": 100, "length": 30}, "must be whole chunks of 30"),
        ({"part": 10}, "must be whole chunks of 256"),
        ({"lr": float("nan")}, "lr must be at least 0, and finite, is nan"),
        ({"schedule": "linear"}, "schedule must be one of wsd, cosine"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        Settings(**settings)
