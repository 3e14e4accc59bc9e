"""open_checkpoint: what was saved comes back, in every type and layout, without holding anything twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.checkpoint.inventory import split_experts
from tinyqwen.checkpoint.loading import PIECE, read_numbers
from tinyqwen.checkpoint.safetensors_file import read_header
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.errors import ModelFilesError
from tinyqwen.weights import random_weights, tensor_shapes, tree, walk

ROUND = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def leaves(weights) -> dict[str, np.ndarray]:
    return {path: array for path, array in walk(weights) if isinstance(array, np.ndarray)}


def assert_same(weights, tensors) -> None:
    found, expected = leaves(weights), leaves(tree(tensors))
    assert list(found) and set(found) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path, strict=True)


def rounded(tensors, dtype, wanted=np.float32):
    return {name: array.astype(ROUND[dtype]).astype(wanted) for name, array in tensors.items()}


@pytest.mark.parametrize("wanted", [np.float32, np.float64])
@pytest.mark.parametrize("shard", [10**9, 1000])
@pytest.mark.parametrize("dtype", ROUND)
def test_round_trip(tmp_path, config, dtype, shard, wanted):
    tensors = random_weights(config)
    save_checkpoint(tmp_path, config, tensors, dtype, max_shard_bytes=shard)
    checkpoint = open_checkpoint(tmp_path, dtype=wanted)
    assert checkpoint.config == replace(config, torch_dtype=dtype)
    assert checkpoint.folder == tmp_path and (len(checkpoint.files) > 1) == (shard < 10**9)
    assert_same(checkpoint.weights, rounded(tensors, dtype, wanted))
    assert (checkpoint.weights.lm_head is checkpoint.weights.embed_tokens) == config.tie_word_embeddings
    checkpoint.check_unchanged()


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_16_bit_pattern_widens_exactly(tmp_path, write_file, kind):
    bits = np.arange(1 << 16, dtype=np.uint16)
    write_file(tmp_path / "all.safetensors", {"all": bits.view(ROUND[kind])})
    stored = read_header(tmp_path / "all.safetensors")["all"]
    single, double = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float64)
    read_numbers(stored, 0, 1 << 16, single)
    read_numbers(stored, 0, 1 << 16, double)
    if kind == "bfloat16":
        np.testing.assert_array_equal(single.view(np.uint32), bits.astype(np.uint32) << 16)  # NaN payloads too
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(single, bits.view(ROUND[kind]).astype(np.float64))
    np.testing.assert_array_equal(single, double)


def test_tensors_larger_than_a_piece(tmp_path):
    config = Config(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
                    vocab_size=PIECE // 2 + 3)  # fmt: skip
    tensors = random_weights(config)
    save_checkpoint(tmp_path, config, tensors)
    seen = []
    checkpoint = open_checkpoint(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert_same(checkpoint.weights, rounded(tensors, "bfloat16"))
    done, totals = zip(*seen)
    assert list(done) == sorted(done) and len(done) > 6
    assert {done[-1], *totals} == {sum(2 * array.size for array in tensors.values())}


def test_float32_is_mapped_and_read_only(make_folder):
    checkpoint = open_checkpoint(make_folder("untied", dtype="float32"))
    assert len(checkpoint.maps) == 1
    for array in leaves(checkpoint.weights).values():
        assert not array.flags.owndata and not array.flags.writeable and array.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.weights.norm.weight[0] = 1


def test_float32_at_an_odd_place_is_read_instead(tmp_path, configs, write_file):
    """A header of odd length is valid; kernels may not be fed numbers that straddle their natural places."""
    config = configs["tied"]
    tensors = random_weights(config)
    (tmp_path / "config.json").write_text(to_json(config))
    for pad in range(4):
        padded = lambda header, pad=pad: json.dumps(header).encode() + b" " * pad  # noqa: E731
        write_file(tmp_path / "model.safetensors", tensors, padded)
        checkpoint = open_checkpoint(tmp_path)
        assert_same(checkpoint.weights, tensors)
        assert all(array.flags.aligned for array in leaves(checkpoint.weights).values())


def test_mixed_types_in_one_file(tmp_path, configs, write_file):
    config = configs["untied"]
    kinds = list(ROUND.values())
    tensors = {name: array.astype(kinds[i % 3]) for i, (name, array) in enumerate(random_weights(config).items())}
    (tmp_path / "config.json").write_text(to_json(config))
    write_file(tmp_path / "model.safetensors", tensors)
    assert_same(open_checkpoint(tmp_path).weights, {name: array.astype("f4") for name, array in tensors.items()})


# ---- tied heads: config says tied or not, the file stores a head or not ---------------------------------------------


def with_head(tmp_path, write_file, config, change):
    tensors = random_weights(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    change(tensors)
    (tmp_path / "config.json").write_text(to_json(config))
    write_file(tmp_path / "model.safetensors", tensors)
    return tensors


def test_tied_and_stored_alike_is_one_table(tmp_path, write_file, configs):
    with_head(tmp_path, write_file, configs["tied"], lambda tensors: None)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.weights.lm_head is checkpoint.weights.embed_tokens and checkpoint.config.tie_word_embeddings


def test_tied_and_stored_in_another_type_but_alike(tmp_path, write_file, configs):
    def change(tensors):
        half = tensors["model.embed_tokens.weight"].astype(np.float16)
        tensors.update({"lm_head.weight": half, "model.embed_tokens.weight": half.astype(np.float32)})

    with_head(tmp_path, write_file, configs["tied"], change)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.weights.lm_head is checkpoint.weights.embed_tokens


def test_tied_but_stored_differently_warns_and_uses_the_stored_head(tmp_path, write_file, configs):
    def change(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    tensors = with_head(tmp_path, write_file, configs["tied"], change)
    with pytest.warns(UserWarning, match="the stored lm_head.weight is used"):
        checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint.weights, tensors)
    assert not checkpoint.config.tie_word_embeddings


def test_tied_and_only_the_head_stored(tmp_path, write_file, configs):
    tensors = with_head(tmp_path, write_file, configs["tied"], lambda t: t.pop("model.embed_tokens.weight"))
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.weights.embed_tokens.weight, tensors["lm_head.weight"])
    assert checkpoint.weights.lm_head is checkpoint.weights.embed_tokens


def test_untied_without_head_says_so(tmp_path, write_file, configs):
    with_head(tmp_path, write_file, configs["untied"], lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(
        ModelFilesError, match=r"1 missing: lm_head.weight \(config.json says tie_word_embeddings is false"
    ):
        open_checkpoint(tmp_path)


# ---- other spellings ------------------------------------------------------------------------------------------------


def fuse(config, tensors):
    """Experts as transformers 5 holds them in memory."""
    tensors = dict(tensors)
    for layer in filter(config.is_sparse, range(config.num_hidden_layers)):
        at = f"model.layers.{layer}.mlp.experts"
        part = lambda name: [tensors.pop(f"{at}.{e}.{name}.weight") for e in range(config.num_experts)]  # noqa: B023, E731
        gate_up = [np.concatenate(pair) for pair in zip(part("gate_proj"), part("up_proj"))]
        tensors |= {f"{at}.gate_up_proj": np.stack(gate_up), f"{at}.down_proj": np.stack(part("down_proj"))}
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_experts(tmp_path, write_file, configs, dtype):
    config = configs["experts"]
    tensors = {name: array.astype(ROUND[dtype]) for name, array in random_weights(config).items()}
    fused = fuse(config, tensors)
    assert len(fused) == len(tensors) - 3 * config.num_experts + 2
    (tmp_path / "config.json").write_text(to_json(config))
    write_file(tmp_path / "model.safetensors", fused)
    assert_same(open_checkpoint(tmp_path).weights, {name: array.astype("f4") for name, array in tensors.items()})
    found = split_experts(config, read_header(tmp_path / "model.safetensors"))
    assert set(found) == set(tensors)


def test_rotary_buffers_of_old_files_are_ignored(tmp_path, write_file, configs):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)

    with_head(tmp_path, write_file, configs["tied"], change)
    open_checkpoint(tmp_path)


# ---- a file that changes while it is mapped -------------------------------------------------------------------------


def test_file_cut_while_mapped(make_folder):
    folder = make_folder(dtype="float32")
    checkpoint = open_checkpoint(folder)
    checkpoint.check_unchanged()
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelFilesError, match=r"model.safetensors: was cut from [\d,]+ to 5,000 bytes while in use"):
        checkpoint.check_unchanged()


def test_file_rewritten_while_mapped(make_folder):
    folder = make_folder(dtype="float32")
    checkpoint = open_checkpoint(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(ModelFilesError, match="was changed while in use"):
        checkpoint.check_unchanged()


def test_file_replaced_by_another_is_harmless(make_folder):
    folder = make_folder(dtype="float32")
    checkpoint = open_checkpoint(folder)
    before = {path: array.copy() for path, array in leaves(checkpoint.weights).items()}
    os.replace(make_folder(name="other", dtype="bfloat16") / "model.safetensors", folder / "model.safetensors")
    checkpoint.check_unchanged()
    for path, array in leaves(checkpoint.weights).items():
        np.testing.assert_array_equal(array, before[path])


def test_widened_weights_do_not_depend_on_the_file(make_folder):
    folder = make_folder(dtype="bfloat16")
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 10)
    checkpoint.check_unchanged()
    assert not checkpoint.maps


def test_file_cut_while_being_read(make_folder):
    path = make_folder(dtype="bfloat16") / "model.safetensors"
    stored = read_header(path)["model.norm.weight"]
    os.truncate(path, stored.offset + 3)
    with pytest.raises(ModelFilesError, match="was cut while being read"):
        read_numbers(stored, 0, stored.size, np.empty(stored.size, np.float32))


def test_an_error_in_progress_stops_the_loading(make_folder):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(make_folder(), progress=stop)


# ---- memory ---------------------------------------------------------------------------------------------------------

PEAK = """
    import resource, sys
    from tinyqwen.checkpoint import open_checkpoint

    def peak():
        try:  # getrusage on Linux starts with the peak of the process that started this one
            status = open("/proc/self/status", encoding="ascii")
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    before = peak()
    checkpoint = open_checkpoint(sys.argv[1], dtype=sys.argv[2], keep=False)
    print(peak() - before)
"""


@pytest.mark.parametrize(("dtype", "format", "kept"), [
    ("bfloat16", "f32", 4), ("float16", "f32", 4), ("float32", "f32", 0), ("bfloat16", "bf16", 0),
    ("float32", "bf16", 2), ("bfloat16", "int8", 8.5 / 8), ("bfloat16", "int4", 6.4 / 8),
])  # fmt: skip
def test_peak_memory_is_the_result_and_little_more(tmp_path, dtype, format, kept):
    """Two equal halves of this model are body (4.5 bits in int4) and tables (8.5)."""
    config = Config(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8, vocab_size=30000
    )
    shapes = tensor_shapes(config)
    zeros = ((name, np.zeros(shape, np.float32)) for name, shape in shapes.items())
    save_checkpoint(tmp_path, config, zeros, dtype, max_shard_bytes=80_000_000)
    script = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path), format]
    grown = int(subprocess.run(script, check=True, capture_output=True, text=True, env=environment()).stdout)
    numbers = sum(map(np.prod, shapes.values()))
    assert numbers > 100e6
    assert numbers * kept * 0.99 <= grown < numbers * kept + 60e6


def environment() -> dict[str, str]:
    """Subprocesses find the package as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
