"""Random models of published shapes: every tensor once, and the same ones from the same seed."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import CONFIGS
from tinyqwen.bench.models import stream_weights
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.sizes import SIZES
from tinyqwen.weights import tensor_shapes

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@every_config
def test_streams_every_tensor_once(config):
    streamed = [(name, array.shape) for name, array in stream_weights(config, 0)]
    assert dict(streamed) == tensor_shapes(config) and len(streamed) == len(dict(streamed))


@every_config
def test_seed_decides(config):
    def numbers(seed):
        return np.concatenate([array.ravel() for _, array in stream_weights(config, seed)])

    np.testing.assert_array_equal(numbers(0), numbers(0))
    assert (numbers(0) != numbers(1)).mean() > 0.99
    layers = [array for name, array in stream_weights(config, 0) if name.endswith("q_proj.bias")]
    assert not np.array_equal(*layers[:2]) and np.abs(layers[0]).min() > 0


def test_a_published_shape_at_a_tenth_of_its_depth(tmp_path):
    config = replace(SIZES["0.5B"].config(), num_hidden_layers=1, layer_types=(), vocab_size=1000)
    save_checkpoint(tmp_path, config, stream_weights(config, 0))
    assert open_checkpoint(tmp_path).weights.layers[0].mlp.up_proj.weight.shape == (4864, 896)
