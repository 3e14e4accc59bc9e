"""The same weights and tokens in transformers (eager attention, float32) and here: the same numbers, layer by layer."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from tests.helpers import (
    CONFIGS,
    assert_close,
    assert_every_layer,
    greedy,
    host,
    logits_of,
    on,
    tokens,
    window_config,
)  # fmt: skip
from tests.oracle.reference import (
    CASES,
    GAP,
    sharp_weights,
    transformers_folder,
    transformers_model,
    transformers_outputs,
)  # fmt: skip
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.config import FULL, SLIDING
from tinyqwen.config_json import parse_config, to_json
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.oracle

# Both are float32 and sum in their own order: measured 2e-6, a real difference (a bias, a pairing, an eps) is 1e-3 up.
NOISE = 2e-5

every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def reference():
    """Name of a case -> config, tensors, token ids and what transformers makes of them; each computed once."""
    done = {}

    def outputs(name):
        if name not in done:
            config, seed = CASES[name]
            tensors, ids = sharp_weights(config, seed), tokens(config, 12)
            done[name] = config, tensors, ids, transformers_outputs(transformers_model(config, tensors), ids, 64)
        return done[name]

    return outputs


@every_case
def test_every_layer_is_equal(backend, reference, case):
    config, tensors, ids, theirs = reference(case)
    assert_every_layer(backend, config, on(backend, tensors), ids, theirs, NOISE)


@every_case
def test_greedy_text_is_equal(backend, reference, case):
    """64 tokens, decoded through either side's own cache."""
    config, tensors, ids, theirs = reference(case)
    assert theirs["gap"] > GAP, "a near tie: choose another seed in CASES"
    assert len(set(theirs["greedy"].tolist())) > 12, "a text that repeats itself proves little: choose another seed"
    assert greedy(backend, config, on(backend, tensors), ids, 64) == theirs["greedy"].tolist()


@pytest.mark.parametrize("cuts", [[0, 70], [0, 5, 6, 7, 20, 33, *range(34, 71)]], ids=["at once", "in pieces"])
def test_a_window_goes_round_as_theirs_does(backend, cuts):
    """70 tokens past a window of 8, layer by layer as layer_types says; our ring in pieces, their mask at once."""
    config = window_config(sliding_window=8, layer_types=(SLIDING, FULL, SLIDING))
    tensors, ids = sharp_weights(config, 4), tokens(config, 70)
    theirs, cache = transformers_outputs(transformers_model(config, tensors), ids), KVCache(backend, config)
    parts = [logits_of(backend, config, on(backend, tensors), ids[i:j], cache) for i, j in pairwise(cuts)]
    assert_close(np.concatenate(parts), theirs["logits"], NOISE)


def test_a_wrong_model_would_be_noticed(reference):
    """The tolerance means something: small changes of the config are far outside it."""
    from dataclasses import replace

    from backends import get

    config, tensors, ids, theirs = reference("window")
    wrong = {
        "theta": replace(config, rope_theta=1.1e4), "eps": replace(config, rms_norm_eps=1e-5),
        "window": replace(config, sliding_window=5), "layers": replace(config, layer_types=config.layer_types[::-1]),
        "yarn": config.with_yarn(2),
    }  # fmt: skip
    for name, each in wrong.items():
        off = np.abs(logits_of(get("numpy"), each, tree(tensors), ids) - theirs["logits"]).max()
        assert off > 3 * NOISE * np.abs(theirs["logits"]).max(), name
    silent = {name: np.zeros_like(tensor) if "bias" in name else tensor for name, tensor in tensors.items()}
    off = np.abs(logits_of(get("numpy"), config, tree(silent), ids) - theirs["logits"]).max()
    assert off > 1000 * NOISE * np.abs(theirs["logits"]).max()


@pytest.mark.parametrize("theta, K", [(1e4, 8), (1e6, 64), (1e6, 128)])
def test_rope_tables_are_equal(backend, theta, K):
    """Both are float32 products of the same formula. The powers may differ in their last places: at an angle of a
    radians by 4 roundings of a, which cosine and sine hand on; positions 0 to 32767."""
    import torch
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    from tests.helpers import call
    from tinyqwen.blocks.rope import rope_tables

    position_T = np.r_[0:300, 4096, 32767]
    theirs = Qwen2RotaryEmbedding(
        Qwen2Config(head_dim=K, rope_parameters={"rope_type": "default", "rope_theta": theta})
    )(torch.zeros(1), torch.from_numpy(position_T)[None])
    ours = call(backend, rope_tables, position_T, head_dim=K, theta=theta)
    allowed = 4 * 2.0**-24 * position_T[:, None] * theta ** (-np.arange(0, K, 2) / K) + 4 * 2.0**-24
    for table_TKh, table_TK in zip(ours, theirs):
        np.testing.assert_array_equal(table_TK[0, :, : K // 2], table_TK[0, :, K // 2 :])
        assert (np.abs(table_TKh - table_TK[0, :, : K // 2].numpy()) <= allowed).all()


YARN = [
    {"factor": 4.0, "original_max_position_embeddings": 32768}, {"factor": 2.0}, {"factor": 1.0}, {"factor": 40.0},
    {"factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 0.9},
    {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 1.5},
    {"factor": 4.0, "truncate": False}, {"factor": 4.0, "original_max_position_embeddings": 128},
]  # fmt: skip


@pytest.mark.parametrize("theta, K", [(1e4, 8), (1e6, 64), (1e6, 128), (1e7, 128), (1e4, 96)])
@pytest.mark.parametrize("numbers", YARN, ids=str)
def test_yarn_is_equal(backend, numbers, theta, K):
    """Frequencies to 6 roundings (float32 powers differ by some), the temperature exactly, and the tables to what 8
    roundings do to the angle."""
    import torch
    from transformers import Qwen2Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    from tests.helpers import call
    from tinyqwen.blocks.rope import rope_tables
    from tinyqwen.blocks.yarn import attention_factor, slowed

    spelled = {"rope_type": "yarn", "rope_theta": theta, **numbers}
    theirs = Qwen2Config(head_dim=K, max_position_embeddings=32768, rope_parameters=dict(spelled))
    scaling = parse_config({**json.loads(to_json(CONFIGS["dense"])), "rope_theta": theta, "rope_scaling": spelled})
    scaling = scaling.rope_scaling

    frequency_Kh, m = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    plain_Kh = (theta ** -(np.arange(0, K, 2) / K)).astype(np.float32)
    ours_Kh = call(backend, slowed, plain_Kh, theta=theta, scaling=scaling)
    np.testing.assert_allclose(ours_Kh, frequency_Kh.numpy(), rtol=6 * 2.0**-24)
    assert attention_factor(scaling) == m

    position_T = np.r_[0:300, 4096, 131071]
    tables = Qwen2RotaryEmbedding(theirs)(torch.zeros(1), torch.from_numpy(position_T)[None])
    ours = call(backend, rope_tables, position_T, head_dim=K, theta=theta, scaling=scaling)
    allowed = m * (8 * position_T[:, None] * frequency_Kh.numpy() + 6) * 2.0**-24
    for table_TKh, table_TK in zip(ours, tables):
        assert (np.abs(table_TKh - table_TK[0, :, : K // 2].numpy()) <= allowed).all()


def test_a_config_with_yarn_comes_back_from_transformers(tmp_path):
    """Ours is read and saved there, in the spelling of transformers 5, and means here what it meant."""
    from transformers import AutoConfig

    config = SIZES["7B"].config().with_yarn(4.0)
    (tmp_path / "config.json").write_text(to_json(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "rope_scaling" not in saved and saved["rope_parameters"]["rope_type"] == "yarn"
    assert parse_config(saved).rope_scaling == config.rope_scaling
    assert (parse_config(saved).rope_theta, parse_config(saved).context) == (1e6, 131072)


def test_a_checkpoint_of_the_real_0_5B_shape_loads_and_agrees(backend, tmp_path):
    """A bf16 folder in the shape of Qwen2-0.5B, read by either side: 24 layers, 14 query heads to 2, 151,936 logits."""
    config = SIZES["0.5B"].config()
    save_checkpoint(tmp_path, config, random_weights(config))
    assert (tmp_path / "model.safetensors").stat().st_size == 988_097_824, "the size of the published file"
    ids = tokens(config, 8)
    theirs = transformers_outputs(transformers_folder(tmp_path), ids)
    weights, cache = open_checkpoint(tmp_path).weights, KVCache(backend, config)
    if backend.xp is not np:
        pytest.skip("weights that are read where they lie: not on a device")
    logits_of(backend, config, weights, ids[:-2], cache)
    decoded = [host(forward(backend, config, weights, make_step([([token], cache)]))) for token in ids[-2:]]
    # 24 layers of sums of 896 and 4864 terms, in each side's own order
    assert_close(np.concatenate(decoded), theirs["logits"][-2:], 1e-4)
