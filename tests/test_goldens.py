"""Every backend against what transformers computed, without torch: see goldens/make_goldens.py."""

import numpy as np
import pytest

from tests.goldens.make_goldens import FOLDER, NAMES, read_golden
from tests.helpers import assert_every_layer, greedy, on

# Two float32 programs that sum in their own order: measured 2e-6; a forgotten bias or a wrong pairing is 1e-2 and more.
NOISE = 2e-5

every_golden = pytest.mark.parametrize("name", NAMES)


@every_golden
def test_every_layer_and_the_logits(backend, name):
    config, tensors, ids, expected = read_golden(name)
    assert_every_layer(backend, config, on(backend, tensors), ids, expected, NOISE)


@every_golden
def test_64_greedy_tokens_through_the_cache(backend, name):
    config, tensors, ids, expected = read_golden(name)
    assert greedy(backend, config, on(backend, tensors), ids, 64) == expected["greedy"].tolist()


@every_golden
def test_norms_and_biases_matter_in_the_golden_models(name):
    """Norm weights of 1 and biases of 0 would let a model pass that forgets them."""
    _, tensors, _, expected = read_golden(name)
    for key, tensor in tensors.items():
        assert tensor.dtype == np.float32
        assert not key.endswith("bias") or np.abs(tensor).max() > 0.1
        assert "norm" not in key or np.abs(tensor - 1).max() > 0.1
    assert expected["gap"] > 1e-3


def test_the_files_are_small_and_all_are_read():
    sizes = {path.stem: path.stat().st_size for path in FOLDER.glob("*.npz")}
    assert sizes.keys() == set(NAMES)
    assert max(sizes.values()) < 200_000 and sum(sizes.values()) < 1_000_000
