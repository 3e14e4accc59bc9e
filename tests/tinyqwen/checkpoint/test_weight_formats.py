"""open_checkpoint in every format: what is mapped, what is made, and that the definitions run all of it."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import backends
from backends.finite import FirstNotFinite, NotFinite
from backends.packed import Packed
from backends.quantised import BITS, Quantised, quantise
from tests.checkpoints import stories_tensors
from tests.helpers import CONFIGS, greedy, logits_of, tokens
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint, settling
from tinyqwen.checkpoint.inventory import fused_experts
from tinyqwen.checkpoint.loading import QUANTISED_PIECE
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.diff.sides import each_array
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.formats import FORMATS, format_of, shape_weights
from tinyqwen.weights import Node, names_of, random_weights, tree, walk

DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}
NUMPY = backends.get("numpy")


def leaves(weights: Node) -> dict:
    return {path: tensor for path, tensor in walk(weights) if not isinstance(tensor, Node)}


def expected(tensors: dict, format: str, tables: str = "int8") -> Node:
    """The format's definition, tensor by tensor."""

    def make(name, array):
        kind = format_of(name, array.shape, format, tables)
        return quantise(array, BITS[kind]) if kind in BITS else array.astype(DTYPES[kind])

    return tree({name: make(name, np.asarray(array, np.float32)) for name, array in tensors.items()})


def full_name(path: str) -> str:
    return path if path.startswith("lm_head") else f"model.{path}"


def assert_same(found: Node, wanted: Node) -> None:
    found, wanted = leaves(found), leaves(wanted)
    assert set(found) == set(wanted)
    for path, tensor in wanted.items():
        if isinstance(tensor, Quantised):
            assert isinstance(found[path], Quantised) and found[path].bits == tensor.bits, path
            assert found[path].shape == tensor.shape
            np.testing.assert_array_equal(found[path].values, tensor.values, err_msg=path, strict=True)
            np.testing.assert_array_equal(found[path].scales, tensor.scales, err_msg=path, strict=True)
        else:
            np.testing.assert_array_equal(found[path], tensor, err_msg=path, strict=True)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["tied", "moe"])
def test_every_format_is_what_its_definition_says(tmp_path, name, format, stored):
    config = CONFIGS[name]
    save_checkpoint(tmp_path, config, random_weights(config), stored)
    exact = {full_name(path): array for path, array in leaves(open_checkpoint(tmp_path).weights).items()}
    checkpoint = open_checkpoint(tmp_path, dtype=format, keep=False)
    assert_same(checkpoint.weights, expected(exact, format))
    assert checkpoint.format == format
    assert (checkpoint.weights.lm_head is checkpoint.weights.embed_tokens) == config.tie_word_embeddings


def test_tables_of_int4_stay_int8_unless_asked_and_gates_are_never_quantised(tmp_path):
    config = CONFIGS["moe"]
    save_checkpoint(tmp_path, config, random_weights(config), "float32")
    for tables, bits in ((None, 8), ("int8", 8), ("int4", 4)):
        weights = open_checkpoint(tmp_path, dtype="int4", tables=tables, keep=False).weights
        assert (weights.embed_tokens.weight.bits, weights.lm_head.weight.bits) == (bits, bits)
        mlp = weights.layers[1].mlp
        assert {mlp.gate.weight.dtype, mlp.shared_expert_gate.weight.dtype} == {np.dtype(ml_dtypes.bfloat16)}
        assert mlp.experts[3].down_proj.weight.bits == mlp.shared_expert.up_proj.weight.bits == 4
        assert weights.layers[0].self_attn.q_proj.bias.dtype == weights.norm.weight.dtype == np.float32


@pytest.mark.parametrize(("stored", "format", "mapped"), [
    ("bfloat16", "auto", True), ("bfloat16", "bf16", True), ("float32", "auto", True), ("float32", "f32", True),
    ("float16", "auto", False), ("float32", "bf16", False), ("bfloat16", "f32", False), ("bfloat16", "int8", False),
])  # fmt: skip
def test_what_is_wanted_as_it_is_stored_is_mapped(make_folder, stored, format, mapped):
    checkpoint = open_checkpoint(make_folder("untied", dtype=stored), dtype=format, keep=False)
    for tensor in leaves(checkpoint.weights).values():
        array = tensor.values if isinstance(tensor, Quantised) else tensor
        in_file = any(np.shares_memory(array, np.frombuffer(file.bytes, np.uint8)) for file in checkpoint.maps)
        assert in_file == (mapped if tensor.ndim == 2 else stored == "float32")
        assert not array.flags.writeable


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_a_copy_holds_the_same_numbers_and_maps_nothing(make_folder, tmp_path, monkeypatch, format):
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "cache"))
    folder = make_folder("untied", dtype="bfloat16")
    for _ in range(2):  # of quantised weights the second time: the first makes and keeps them
        copied, mapped = (open_checkpoint(folder, dtype=format, mapped=mapped) for mapped in (False, True))
        assert not copied.maps
        ours, theirs = leaves(copied.weights), leaves(mapped.weights)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name].astype(np.float32), theirs[name].astype(np.float32))


@pytest.mark.parametrize(("stored", "mapped", "meanwhile"), [
    ("bfloat16", True, False), ("bfloat16", None, True), ("float32", None, False), ("bfloat16", False, False),
])  # fmt: skip
def test_a_large_model_in_bf16_is_packed_and_says_the_same(tmp_path, monkeypatch, stored, mapped, meanwhile):
    """At once or while it works. Matrices without whole blocks, and one with numbers of all magnitudes, stay."""
    monkeypatch.setattr(settling, "SMALL", 0)
    config = replace(CONFIGS["tied"], hidden_size=128, num_attention_heads=4, head_dim=32, intermediate_size=200)
    tensors, random = random_weights(config), np.random.default_rng(0)
    wild = "model.layers.1.self_attn.v_proj.weight"
    tensors[wild] = np.ldexp(tensors[wild], random.integers(-60, 20, tensors[wild].shape)).astype(np.float32)
    save_checkpoint(tmp_path, config, tensors, dtype=stored)
    plain, packed = (open_checkpoint(tmp_path, dtype="bf16", packed=packed, mapped=mapped) for packed in (False, True))
    assert packed.packing == meanwhile
    assert meanwhile != any(isinstance(array, Packed) for array in leaves(packed.weights).values())
    packed.settle()
    kinds = {path: isinstance(array, Packed) for path, array in leaves(packed.weights).items() if array.ndim == 2}
    assert kinds.pop(wild.removeprefix("model.")) is False
    assert kinds == {path: "down_proj" not in path for path in kinds}
    for path, array in leaves(plain.weights).items():
        ours = leaves(packed.weights)[path]
        np.testing.assert_array_equal(ours.astype(np.float32), array.astype(np.float32), err_msg=path)
    for backend in (NUMPY, backends.get("cpu", threads=1)):
        ours, theirs = (logits_of(backend, one.config, one.weights, [1, 2, 3]) for one in (packed, plain))
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert not any(isinstance(array, Packed) for array in leaves(plain.weights).values())


@pytest.mark.parametrize(("available", "packs"), [(10**12, True), (12 * 10**9, False), (None, False)])
def test_a_model_is_packed_only_where_there_is_room(monkeypatch, available, packs):
    """Else it stays mapped, and runs as slowly as the disk is, but runs."""
    monkeypatch.setattr(settling, "available_bytes", lambda: available)
    assert settling.worth_packing({f"layer {n}": ("bf16", (10**4, 10**4)) for n in range(75)}) == packs


def test_auto_is_as_stored_and_float16_is_not_cut(tmp_path, configs, write_file):
    config = configs["untied"]
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16]
    tensors = {name: array.astype(kinds[i % 3]) for i, (name, array) in enumerate(random_weights(config).items())}
    (tmp_path / "config.json").write_text(to_json(config))
    write_file(tmp_path / "model.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path, dtype="auto")
    assert checkpoint.format == "mixed"
    for path, array in leaves(checkpoint.weights).items():
        original = leaves(tree(tensors))[path]
        wide = original.ndim == 1 or original.dtype != ml_dtypes.bfloat16
        assert array.dtype == (np.float32 if wide else ml_dtypes.bfloat16)
        np.testing.assert_array_equal(array.astype(np.float32), original.astype(np.float32))


def test_misaligned_bfloat16_is_read(tmp_path, configs, write_file):
    config = configs["untied"]
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_weights(config).items()}
    (tmp_path / "config.json").write_text(to_json(config))
    for pad in (0, 1):
        write_file(tmp_path / "model.safetensors", tensors, lambda h, pad=pad: pad_to(json.dumps(h).encode(), pad))
        checkpoint = open_checkpoint(tmp_path, dtype="bf16")
        assert len(checkpoint.maps) == 1 - pad
        assert all(array.flags.aligned for array in leaves(checkpoint.weights).values())
        assert_same(checkpoint.weights, expected(tensors, "bf16"))


def pad_to(text: bytes, remainder: int) -> bytes:
    return text + b" " * ((remainder - len(text)) % 2)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_matrices_larger_than_a_piece(tmp_path, format):
    config = Config(hidden_size=96, intermediate_size=7, num_hidden_layers=1, num_attention_heads=2,
                    vocab_size=2 * QUANTISED_PIECE // 96 + 5)  # fmt: skip
    tensors, seen = random_weights(config), []
    save_checkpoint(tmp_path, config, tensors, "float32")
    checkpoint = open_checkpoint(tmp_path, dtype=format, keep=False, progress=lambda *now: seen.append(now))
    assert_same(checkpoint.weights, expected(tensors, format))
    done, totals = zip(*seen)
    matrices = sum(4 * array.size for array in tensors.values() if array.ndim == 2)
    assert list(done) == sorted(done) and {done[-1], *totals} == {matrices} and len(done) > 12


@pytest.mark.parametrize("format", FORMATS)
def test_fused_experts_in_every_format(tmp_path, configs, write_file, format):
    config = configs["experts"]
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_weights(config).items()}
    fused = dict(tensors)
    for layer in filter(config.is_sparse, range(config.num_hidden_layers)):
        for name, members in fused_experts(config, layer).items():
            parts = [fused.pop(f"model.layers.{layer}.mlp.experts.{member}.weight") for member in members]
            stacked = np.concatenate(parts)
            fused[name] = stacked.reshape(config.num_experts, -1, stacked.shape[-1])
    (tmp_path / "config.json").write_text(to_json(config))
    write_file(tmp_path / "model.safetensors", fused)
    assert_same(open_checkpoint(tmp_path, dtype=format, keep=False).weights, expected(tensors, format))


# ---- the definitions run them all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_forward_on_the_widened_weights(name, format):
    config = CONFIGS[name]
    weights = expected(random_weights(config, scale=0.3), format)
    wide = each_array(weights, lambda tensor: tensor.astype(np.float32))
    ids = tokens(config, 9)
    np.testing.assert_array_equal(logits_of(NUMPY, config, weights, ids), logits_of(NUMPY, config, wide, ids))
    exact = logits_of(NUMPY, config, tree(random_weights(config, scale=0.3)), ids)
    assert not np.array_equal(logits_of(NUMPY, config, weights, ids), exact)


@pytest.mark.parametrize("format", FORMATS)
def test_costs_are_those_of_the_bytes(format):
    """A model without data costs what the same one with data does, and a looked-up row costs one row."""
    config = CONFIGS["moe"]
    shapes, real = leaves(shape_weights(config, format)), leaves(expected(random_weights(config), format))
    for path, tensor in real.items():
        one, other = ((each.nbytes, each.shape, each.dtype) for each in (shapes[path], tensor))
        assert one == other
    table_VD, row_T = shapes["embed_tokens.weight"], np.zeros(7, int)
    bits = {"f32": 32, "bf16": 16, "int8": 8, "int4": 8}[format]
    row = 20 * bits / 8 if bits > 8 else (32 + 2) * 48 / 41  # 41 rows of 20 are filled up to 48 of 32, and have scales
    assert take_rows.cost_of(table_VD, row_T).read == int(7 * row) + row_T.nbytes


@pytest.mark.parametrize(("format", "steps"), [("f32", 256), ("bf16", 185)])
def test_stories260k_keeps_its_text(data, format, steps):
    """In bfloat16 up to step 184: at 185 the two likeliest tokens are closer than its rounding (data/README.md)."""
    config, tensors = stories_tensors(data)
    ids = json.loads((data / "stories260K" / "greedy256.json").read_text())["ids"]
    start = ids.index(1) + 1
    said = greedy(NUMPY, config, expected(tensors, format), ids[:start], steps)
    assert said == ids[start : start + steps]


# ---- what is wrong is named -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_quantised_is_named(tmp_path, configs, bad):
    tensors = random_weights(configs["tied"])
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = bad
    save_checkpoint(tmp_path, configs["tied"], tensors, "float32")
    with pytest.raises(ModelFilesError, match=r"model.layers.1.mlp.up_proj.weight cannot be quantised.*--dtype bf16"):
        open_checkpoint(tmp_path, dtype="int8", keep=False)
    open_checkpoint(tmp_path, dtype="bf16")


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_weight_that_is_no_number_is_named_while_running(format):
    config = CONFIGS["dense"]
    weights = expected(random_weights(config), format)
    matrix = weights.layers[1].mlp.up_proj.weight
    (matrix.scales if format == "int8" else matrix).reshape(-1)[0] = np.nan
    with pytest.raises(NotFinite, match=r"layers.1.mlp.up_proj.weight itself holds 1"):
        logits_of(FirstNotFinite(NUMPY, names_of(weights)), config, weights, tokens(config, 3))


def test_unknown_formats_are_refused(make_folder):
    with pytest.raises(UsageError, match="'int2' but must be auto, f32, bf16, int8, int4"):
        open_checkpoint(make_folder(), dtype="int2")
    with pytest.raises(ValueError, match="must be float32 or float64"):
        open_checkpoint(make_folder(), dtype=np.float16)
