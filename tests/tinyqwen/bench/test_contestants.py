"""Contestants give the same questions the same meaning; files written for peers hold the model that was given."""

import numpy as np
import pytest

import backends
from tinyqwen.bench.contestants import ours
from tinyqwen.bench.contestants.task import Task, some_ids
from tinyqwen.bench.models import random_model, stored_tensors
from tinyqwen.checkpoint import settling
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.runtime import load, takes_sketch
from tinyqwen.step import make_step
from tinyqwen.weights import tensor_shapes, tree

CONFIG = Config(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=512, tie_word_embeddings=True, rope_theta=1e6, eos_token_id=(511,),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("made"), CONFIG)


def task(folder, dtype, **options):
    return Task(folder, folder / "exports", dtype, 1, options)


def expected_ids(folder, prompt, count):
    """What the definitions choose, greedily, after that prompt."""
    backend, weights, ids = backends.get("numpy"), tree(dict(stored_tensors(folder))), prompt.tolist()
    for _ in range(count):
        logits_NV = forward(backend, CONFIG, weights, make_step([(ids, None)]))
        ids.append(int(logits_NV[0].argmax()))
    return ids[len(prompt) :]


def test_a_made_model_is_complete_and_made_once(folder):
    runtime = load(folder)
    assert {name: array.shape for name, array in stored_tensors(folder)} == tensor_shapes(CONFIG)
    text = "Hello wörld, 123!\n"
    assert runtime.tokenizer.decode(runtime.tokenizer.encode(text)) == text
    assert runtime.tokenizer.size == CONFIG.vocab_size
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert random_model(folder, CONFIG, seed=9) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_ours_decodes_what_generate_would_and_forgets_what_it_decoded(folder):
    model = ours.load(task(folder, "f32", backend="numpy"))
    prompt = some_ids(CONFIG.vocab_size, 1, 20)
    [caches] = [model.new_caches(1)]
    first = model.feed(caches, prompt)
    second = model.feed(caches, first[:, None])
    assert [*first, *second] == expected_ids(folder, prompt[0], 2)
    for _ in range(2):
        assert len(model.decode(5, 3, 2)) == 3
        assert [cache.length for cache in model.caches[5, 2]] == [8, 8]
    assert model.prefill(30) > 0
    assert model.weight_bytes == sum(4 * np.prod(shape) for shape in tensor_shapes(CONFIG).values())


def test_with_a_sketch_ours_says_the_same_and_reads_less(folder, monkeypatch):
    if not takes_sketch(backends.get("cpu")):
        pytest.skip("sketches are for processors with VNNI")
    monkeypatch.setattr(settling, "SMALL", 0)
    one, other = (ours.load(task(folder, "int8", sketch=sketch)) for sketch in ("yes", "no"))
    head, sketch = one.weights.lm_head.weight, one.runtime.checkpoint.sketch
    assert other.runtime.checkpoint.sketch is None and sketch.nbytes < head.nbytes
    assert one.weight_bytes == other.weight_bytes + sketch.nbytes
    assert one.token_bytes == other.token_bytes + sketch.nbytes - head.nbytes
    ids, (mine,), (theirs,) = some_ids(CONFIG.vocab_size, 1, 9), one.new_caches(1), other.new_caches(1)
    for _ in range(5):
        said = one.feed([mine], ids)
        np.testing.assert_array_equal(said, other.feed([theirs], ids))
        assert mine.length == theirs.length
        ids = said[:, None]


def test_a_long_prompt_in_chunks_is_the_prompt(folder, monkeypatch):
    model = ours.load(task(folder, "f32", backend="numpy"))
    prompt = some_ids(CONFIG.vocab_size, 2, 50)
    whole = model.feed(model.new_caches(2), prompt)
    monkeypatch.setattr(ours, "CHUNK", 16)
    np.testing.assert_array_equal(model.feed(model.new_caches(2), prompt), whole)


def peer(name):
    """The module of a peer, if its packages are there."""
    for package in {"llama_cpp": ("llama_cpp", "gguf"), "openvino": ("openvino",),
                    "transformers": ("torch", "transformers")}[name]:  # fmt: skip
        pytest.importorskip(package, reason=f"{package} is of the [bench] extra")
    import importlib

    return importlib.import_module(f"tinyqwen.bench.contestants.{name}")


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("llama_cpp", "bf16"),
        ("openvino", "f32"),
        ("openvino", "bf16"),
        ("transformers", "f32"),
        ("transformers", "bf16"),
    ],
)
def test_a_peer_runs_the_same_model(folder, name, dtype):
    """It chooses the tokens that the definitions choose, and knows how many it has seen."""
    module = peer(name)
    job = task(folder, dtype)
    module.prepare(job)
    model = module.load(job)
    prompt = some_ids(CONFIG.vocab_size, 1, 20)
    chosen = {
        "llama_cpp": lambda: model.feed(model.context(32, 1)[0], prompt, 0),
        "openvino": lambda: model.feed(model.request("test")[0], prompt, 0),
        "transformers": lambda: model.feed(model.new_cache(), prompt),
    }[name]()
    assert chosen.tolist() == expected_ids(folder, prompt[0], 1)
    for _ in range(2):
        assert len(model.decode(16, 2, 3)) == 2 and len(model.decode(0, 2, 1)) == 2
    assert model.prefill(40) > 0


@pytest.mark.parametrize("name", ["llama_cpp", "openvino"])
def test_fewer_bits_are_fewer_bytes(folder, name):
    module = peer(name)
    sizes = []
    for dtype in ("bf16", "int8", "int4"):
        module.prepare(task(folder, dtype))
        sizes.append(module.load(task(folder, dtype)).weight_bytes)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.2 * sizes[2]
