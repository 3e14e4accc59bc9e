"""Which tensors a config asks for, and the tree that they form."""

import numpy as np
import pytest

from backends import shape_only
from tests.helpers import CONFIGS, dense_config, moe_config
from tinyqwen.sizes import SIZES
from tinyqwen.weights import Node, count_parameters, fill, random_weights, tensor_shapes, tree, walk


@pytest.mark.parametrize("name, count", {"0.5B": 290, "7B": 339, "57B-A14B": 5771}.items())
def test_tensor_counts_are_those_of_the_published_checkpoints(name, count):
    assert len(tensor_shapes(SIZES[name].config())) == count


def test_a_tied_model_has_no_head_of_its_own_and_only_q_k_v_have_biases():
    tied, untied = (tensor_shapes(dense_config(tie_word_embeddings=value)) for value in (True, False))
    assert set(untied) - set(tied) == {"lm_head.weight"}
    assert {name.split(".")[-2] for name in untied if name.endswith("bias")} == {"q_proj", "k_proj", "v_proj"}
    plain = tensor_shapes(moe_config(qkv_bias=False))
    assert not [name for name in plain if name.endswith("bias")]


def test_sparse_and_dense_layers_have_their_own_tensors():
    """moe_config: of four layers, layer 1 is sparse."""
    shapes = tensor_shapes(moe_config())
    sparse = {int(name.split(".")[2]) for name in shapes if ".mlp.gate.weight" in name}
    dense = {int(name.split(".")[2]) for name in shapes if ".mlp.gate_proj.weight" in name}
    assert (sparse, dense) == ({1}, {0, 2, 3})
    assert shapes["model.layers.1.mlp.experts.8.down_proj.weight"] == (20, 13)
    assert shapes["model.layers.1.mlp.shared_expert.up_proj.weight"] == (17, 20)
    assert shapes["model.layers.1.mlp.shared_expert_gate.weight"] == (1, 20)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_path_in_the_tree_is_the_key_of_the_checkpoint(config):
    """Every tensor is found under its own name, once; a tied head is the table itself."""
    tensors = random_weights(config)
    weights = tree(tensors)
    found = {path: value for path, value in walk(weights) if isinstance(value, np.ndarray)}
    assert found.keys() == {name.removeprefix("model.") for name in tensors}
    assert all(found[name.removeprefix("model.")] is tensor for name, tensor in tensors.items())
    assert (weights.lm_head is weights.embed_tokens) == config.tie_word_embeddings


def test_layers_stay_in_order_beyond_ten():
    """As text, 10 comes before 2."""
    weights = tree({f"model.layers.{n}.input_layernorm.weight": n for n in (10, 9, 2, 1, 0, 3, 8, 7, 6, 5, 4)} | {
        "model.embed_tokens.weight": "table"
    })  # fmt: skip
    assert [layer.input_layernorm.weight for layer in weights.layers] == list(range(11))


def test_random_weights_are_seeded_and_would_show_a_forgotten_bias_or_norm():
    config = dense_config()
    first, same, other = random_weights(config, 1), random_weights(config, 1), random_weights(config, 2)
    shapes = tensor_shapes(config)
    for name, tensor in first.items():
        assert tensor.dtype == np.float32 and tensor.shape == shapes[name]
        np.testing.assert_array_equal(tensor, same[name])
        assert (tensor != other[name]).any()
        if name.endswith("bias"):
            assert np.abs(tensor).max() > 0.1
        if "norm" in name:
            assert np.abs(tensor - 1).max() > 0.1 and abs(tensor.mean() - 1) < 0.3


def test_a_model_without_data_has_every_shape():
    config = SIZES["72B"].config()
    tensors = fill(config, lambda name, shape: shape_only(shape))
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    assert sum(tensor.size for tensor in tensors.values()) == count_parameters(config)["total"]
    assert isinstance(tree(tensors), Node)
