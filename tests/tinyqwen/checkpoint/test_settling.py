"""Weights move out of their mapped file while the model works, and nobody notices."""

import dataclasses
import threading

import numpy as np
import pytest

from backends import get
from backends.packed import Packed
from backends.quantised import Quantised
from backends.sketch import sketch_of
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint, settling
from tinyqwen.config import Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights


@pytest.fixture
def open_settling(make_folder, monkeypatch, tmp_path):
    """Open a folder of 50 kB as if it were large, in a format; the quantised weights are kept ones."""
    monkeypatch.setattr(settling, "SMALL", 0)
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "cache"))

    def open_it(format, mapped=None, name="untied"):
        folder = make_folder(name, dtype="bfloat16")
        open_checkpoint(folder, dtype=format)
        return open_checkpoint(folder, dtype=format, mapped=mapped)

    return open_it


def arrays_of(checkpoint):
    for _, _, array in settling.places(checkpoint.weights):
        yield from (array.values, array.scales) if isinstance(array, Quantised) else (array,)


@pytest.mark.parametrize("name", ["tied", "untied", "experts"])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_the_same_numbers_elsewhere(open_settling, format, name):
    checkpoint, mapped = open_settling(format, name=name), open_settling(format, mapped=True, name=name)
    checkpoint.settle()
    for ours, theirs in zip(arrays_of(checkpoint), arrays_of(mapped), strict=True):
        np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8), strict=True)
        assert not ours.flags.writeable and not any(file.holds(ours) for file in checkpoint.maps)
    assert any(file.holds(array) for array in arrays_of(mapped) for file in mapped.maps)
    tied = mapped.weights.lm_head is mapped.weights.embed_tokens
    assert (checkpoint.weights.lm_head is checkpoint.weights.embed_tokens) == tied


WIDE = Config(
    hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=90, head_dim=32
)


@pytest.mark.parametrize("packed", [False, True])
def test_the_model_works_meanwhile(monkeypatch, tmp_path, packed):
    """The thread is held up after each array; the logits are the same before, between and after."""
    monkeypatch.setattr(settling, "SMALL", 0)
    save_checkpoint(tmp_path, WIDE, random_weights(WIDE), dtype="bfloat16")
    steps, go = threading.Semaphore(0), threading.Semaphore(0)
    real = settling.places

    def slow_places(node):
        for place in real(node):
            yield place
            steps.release()
            go.acquire()

    monkeypatch.setattr(settling, "places", slow_places)
    checkpoint, backend = open_checkpoint(tmp_path, dtype="bf16", mapped=None, packed=packed), get("cpu")
    answered = KVCache(backend, WIDE)

    def logits():
        """Of a prompt, and of a token behind it."""
        cache = KVCache(backend, WIDE)
        for sequence, ids in (cache, [1, 2, 3]), (cache, [4]), (answered, [5]):
            yield forward(backend, WIDE, checkpoint.weights, make_step([(ids, sequence)]))
        answered.length = 0

    expected, count = [*logits()], 0
    checkpoint.settle(wait=False)
    while checkpoint.settling.is_alive():
        if steps.acquire(timeout=0.1):
            np.testing.assert_array_equal([*logits()], expected)
            count += 1
            go.release()
    assert count > 10
    np.testing.assert_array_equal([*logits()], expected)
    assert isinstance(checkpoint.weights.layers[1].mlp.up_proj.weight, Packed) == packed


@pytest.mark.parametrize(("available", "moves"), [(10**9, True), (1000, False), (None, False)])
def test_only_where_there_is_room(open_settling, monkeypatch, available, moves):
    monkeypatch.setattr(settling, "available_bytes", lambda: available)
    assert (open_settling("bf16").settling is not None) == moves


def test_what_is_small_or_asked_for_stays(open_settling, monkeypatch):
    assert open_settling("bf16", mapped=True).settling is None
    copied = open_settling("bf16", mapped=False)
    assert copied.settling is None and not copied.maps
    monkeypatch.setattr(settling, "SMALL", 1 << 26)
    assert open_settling("bf16").settling is None


def test_a_file_that_changes_meanwhile_stays_mapped(open_settling, monkeypatch):
    """Its copy could be of two versions. The next step says what happened."""
    from tinyqwen.errors import ModelFilesError

    checkpoint = open_settling("bf16", mapped=True)
    with open(checkpoint.files[0], "r+b") as file:
        file.seek(-2, 2)
        file.write(b"ab")
    settling.move(checkpoint.weights, checkpoint.maps, packed=False)
    assert settling.sketch_of_head(checkpoint.weights, checkpoint.maps) is None
    assert all(any(file.holds(array) for file in checkpoint.maps) or array.ndim == 1 for array in arrays_of(checkpoint))
    with pytest.raises(ModelFilesError, match="changed while in use"):
        checkpoint.check_unchanged()


# ---- a sketch of the head ----


@pytest.fixture
def open_sketched(monkeypatch, tmp_path):
    """Open a model whose head is most of it, as if it were large."""
    monkeypatch.setattr(settling, "SMALL", 0)
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "cache"))

    def open_it(dtype="bf16", sketched=True, changes=(), **settings):
        config = dataclasses.replace(WIDE, vocab_size=3000, **dict(changes))
        save_checkpoint(tmp_path / "model", config, random_weights(config), dtype="bfloat16")
        return open_checkpoint(tmp_path / "model", dtype=dtype, sketched=sketched, **settings)

    return open_it


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("settings", [{"mapped": None}, {"mapped": None, "packed": True}, {"mapped": False}])
def test_a_sketch_is_drawn_of_the_head(open_sketched, dtype, settings, tied):
    checkpoint = open_sketched(dtype, changes={"tie_word_embeddings": tied}, **settings)
    assert checkpoint.sketching and checkpoint.sketch is None  # until somebody lets the thread begin
    head_VD = checkpoint.weights.lm_head.weight.astype(np.float32)
    checkpoint.settle()
    np.testing.assert_array_equal(checkpoint.sketch.rough.values, sketch_of(head_VD).rough.values)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ({"sketched": False}, {}),
        ({"dtype": "int4", "tables": "int4"}, {}),  # the head has 4.5 bits itself
        ({}, {"num_hidden_layers": 90, "layer_types": ()}),  # nothing to be gained
    ],
)
def test_no_sketch_where_it_would_save_little(open_sketched, case, changes):
    checkpoint = open_sketched(mapped=None, changes=changes, **case)
    checkpoint.settle()
    assert not checkpoint.sketching and checkpoint.sketch is None


@pytest.mark.parametrize("available", [1000, None])
def test_no_sketch_where_there_is_no_room(open_sketched, monkeypatch, available):
    monkeypatch.setattr(settling, "available_bytes", lambda: available)
    assert open_sketched().settling is None


def test_no_sketch_of_a_small_model(open_sketched, monkeypatch):
    monkeypatch.setattr(settling, "SMALL", 1 << 26)
    assert open_sketched().settling is None


def test_a_head_with_what_is_no_number_has_no_sketch(open_sketched):
    checkpoint = open_sketched("f32", mapped=False)
    head_VD = checkpoint.weights.lm_head.weight.copy()
    head_VD[5, 5] = np.nan
    checkpoint.weights.lm_head.weight = head_VD
    checkpoint.settle()
    assert checkpoint.sketching and checkpoint.sketch is None
