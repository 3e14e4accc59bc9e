"""transformers and this project read each other's folders: same names, same numbers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.weights import random_weights, walk

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def oracle() -> SimpleNamespace:
    torch = pytest.importorskip("torch", reason="torch is not installed, so nothing can be compared with it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return SimpleNamespace(torch=torch, model=transformers.AutoModelForCausalLM)


def load_there(oracle, folder):
    """The folder in transformers, and what it says about keys that did not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = oracle.model.from_pretrained(
            folder, dtype=oracle.torch.float32, output_loading_info=True, local_files_only=True
        )
    return model, report


@pytest.mark.parametrize("shard", [10**9, 1300])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_transformers_reads_ours(oracle, tmp_path, config, dtype, shard):
    save_checkpoint(tmp_path, config, random_weights(config), dtype, max_shard_bytes=shard)
    model, report = load_there(oracle, tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.tie_word_embeddings == config.tie_word_embeddings
    there = {name.removeprefix("model."): tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, array in walk(open_checkpoint(tmp_path).weights):
        if isinstance(array, np.ndarray) and ".experts." not in name:
            np.testing.assert_array_equal(there.pop(name), array, err_msg=name)
    left = {name for name in there if ".experts." not in name}
    assert left == ({"lm_head.weight"} if config.tie_word_embeddings else set())


@pytest.mark.parametrize("kind", ["tied", "untied", "experts"])
def test_we_read_what_transformers_saves(oracle, tmp_path, configs, kind):
    save_checkpoint(tmp_path / "ours", configs[kind], random_weights(configs[kind]), "float32")
    model, _ = load_there(oracle, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=3000)
    ours, theirs = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "theirs")
    assert replace(theirs.config, torch_dtype="float32") == replace(ours.config, torch_dtype="float32")
    expected = {name: array for name, array in walk(ours.weights) if isinstance(array, np.ndarray)}
    found = {name: array for name, array in walk(theirs.weights) if isinstance(array, np.ndarray)}
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_fused_experts_are_laid_out_as_in_transformers(oracle, tmp_path, configs):
    config = configs["experts"]
    save_checkpoint(tmp_path, config, random_weights(config), "float32")
    expected = open_checkpoint(tmp_path).weights.layers[1].mlp.experts[2]
    gate, down, up = (array.copy() for array in (expected.gate_proj.weight, expected.down_proj.weight,
                                                   expected.up_proj.weight))  # fmt: skip
    model, _ = load_there(oracle, tmp_path)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert "model.layers.1.mlp.experts.gate_up_proj" in tensors, "this release keeps experts apart"
    save_file(tensors, tmp_path / "model.safetensors")
    expert = open_checkpoint(tmp_path).weights.layers[1].mlp.experts[2]
    np.testing.assert_array_equal(expert.gate_proj.weight, gate)
    np.testing.assert_array_equal(expert.up_proj.weight, up)
    np.testing.assert_array_equal(expert.down_proj.weight, down)


@pytest.mark.parametrize("differs", [False, True])
def test_a_tied_model_with_a_stored_head(oracle, tmp_path, configs, differs):
    """We follow transformers: a head that differs is used, and one that does not is the embedding."""
    save_checkpoint(tmp_path, configs["tied"], random_weights(configs["tied"]), "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(differs)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_there(oracle, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = open_checkpoint(tmp_path).weights
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), weights.lm_head.weight)
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy(), weights.embed_tokens.weight)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (not differs)
    assert (weights.lm_head is weights.embed_tokens) == (not differs)


def test_only_the_head_stored(oracle, tmp_path, configs):
    save_checkpoint(tmp_path, configs["tied"], random_weights(configs["tied"]), "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_there(oracle, tmp_path)
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), open_checkpoint(tmp_path).weights.embed_tokens.weight
    )
