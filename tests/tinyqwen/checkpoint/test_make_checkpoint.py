"""tests/make_checkpoint.py: random model folders of published shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.make_checkpoint import copy_tokenizer, stream_weights
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.sizes import SIZES
from tinyqwen.weights import tensor_shapes


def test_streams_every_tensor_once(config):
    streamed = [(name, array.shape) for name, array in stream_weights(config, 0)]
    assert dict(streamed) == tensor_shapes(config) and len(streamed) == len(dict(streamed))


def test_seed_decides(config):
    def numbers(seed):
        return np.concatenate([array.ravel() for _, array in stream_weights(config, seed)])

    np.testing.assert_array_equal(numbers(0), numbers(0))
    assert (numbers(0) != numbers(1)).mean() > 0.99
    layers = [array for name, array in stream_weights(config, 0) if name.endswith("q_proj.bias")]
    assert not np.array_equal(*layers) and np.abs(layers[0]).min() > 0


def test_a_published_shape_at_a_tenth_of_its_depth(tmp_path):
    config = replace(SIZES["0.5B"].config(), num_hidden_layers=1, layer_types=(), vocab_size=1000)
    save_checkpoint(tmp_path, config, stream_weights(config, 0))
    assert open_checkpoint(tmp_path).weights.layers[0].mlp.up_proj.weight.shape == (4864, 896)


def test_tokenizer_files_come_from_the_test_data(tmp_path, data):
    assert copy_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (data / "qwen2_tokenizer" / "tokenizer.json").read_bytes()


def test_the_command_knows_the_sizes():
    root = Path(__file__).parents[3]
    command = [sys.executable, str(root / "tests" / "make_checkpoint.py"), "--size", "8B", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 2 and "invalid choice: '8B'" in done.stderr
