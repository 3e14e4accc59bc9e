"""Weight formats through the whole program: load, room, info, trace, diff and plan."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from backends.quantised import Quantised
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import CONFIGS
from tinyqwen import memory
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.checkpoint.convert import convert
from tinyqwen.cli.main import main
from tinyqwen.diff.compare import differing_weights
from tinyqwen.diff.sides import each_array, rounded_to_bf16
from tinyqwen.errors import DoesNotFitError
from tinyqwen.formats import FORMATS, format_of, shape_weights, weight_bytes
from tinyqwen.plan import memory as planned_memory
from tinyqwen.runtime import load
from tinyqwen.sizes import SIZES
from tinyqwen.weights import Node, tensor_shapes, walk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "cache"))
    write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    return tmp_path / "model"


def test_auto_is_f32_on_numpy_and_the_folders_own_format_where_it_has_one(folder, tmp_path):
    assert load(folder, backend="numpy").checkpoint.format == "f32"
    assert load(folder, backend="numpy", dtype="bf16").checkpoint.format == "bf16"
    convert(folder, tmp_path / "eight", "int8")
    assert load(tmp_path / "eight", backend="numpy").checkpoint.format == "int8"


def test_what_does_not_fit_is_said_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 40_000)
    with pytest.raises(DoesNotFitError, match=r"parameters in f32 needs .* --dtype int4"):
        load(folder, backend="numpy")
    with pytest.raises(DoesNotFitError, match=r"parameters in f32"):
        load(folder, backend="numpy", dtype="f32")
    load(folder, backend="numpy", dtype="bf16")  # mapped
    load(folder, backend="numpy", dtype="int8")  # 22 KB


def test_vectors_and_gates_are_never_quantised_and_everything_else_is():
    for config in (SIZES["57B-A14B"].config(), CONFIGS["moe"]):
        for name, shape in tensor_shapes(config).items():
            for format in FORMATS:
                found = format_of(name, shape, format)
                if len(shape) == 1:
                    assert found == "f32"
                elif name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
                    assert found == ("f32" if format == "f32" else "bf16")
                elif "embed" in name or "lm_head" in name:
                    assert found == ("int8" if format == "int4" else format)
                else:
                    assert found == format


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", CONFIGS)
def test_planned_weights_are_what_a_loaded_model_has(tmp_path, name, format):
    from tinyqwen.checkpoint import save_checkpoint
    from tinyqwen.weights import random_weights

    save_checkpoint(tmp_path, CONFIGS[name], random_weights(CONFIGS[name]))
    weights = open_checkpoint(tmp_path, dtype=format, keep=False).weights
    real = sum(tensor.nbytes for _, tensor in walk(weights) if not isinstance(tensor, Node))
    assert planned_memory(CONFIGS[name], 8, format).weights == real


def test_bits_per_weight_are_the_documented_ones():
    """Of a body whose sizes are multiples of 32; the tables of int4 are int8."""
    config = SIZES["7B"].config()
    shapes = tensor_shapes(config)
    matrices = sum(np.prod(shape) for shape in shapes.values() if len(shape) > 1)
    vectors = 2 * sum(np.prod(shape) for shape in shapes.values() if len(shape) == 1)
    assert weight_bytes(config, "int8") == matrices * 8.5 / 8 + vectors
    assert weight_bytes(config, "int4", "int4") == matrices * 4.5 / 8 + vectors
    tables = 2 * config.vocab_size * config.hidden_size
    assert weight_bytes(config, "int4") == weight_bytes(config, "int4", "int4") + tables * 4 / 8


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_info_says_how_a_folder_is_stored(folder, tmp_path, capsys):
    convert(folder, tmp_path / "four", "int4")
    for path, stored in ((folder, "bfloat16"), (tmp_path / "four", "int4")):
        assert main(["info", "--model", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stored_as"] == stored


def test_trace_shows_fewer_bytes_in_fewer_bits(folder, tmp_path, capsys):
    read = {}
    for format in FORMATS:
        for backend, model in (("meta", ["--size", "0.5B"]), ("numpy", ["--model", str(folder), "hi"])):
            lines = tmp_path / f"{backend}.jsonl"
            command = ["trace", *model, "--backend", backend, "--dtype", format, "--decode", "1", "-q", "--no-cache"]
            assert main([*command, "--jsonl", str(lines), "--device", "H200"]) == 0
            out = capsys.readouterr().out
            assert ("float32;" if format == "f32" else f"{format} weights;") in out
            spans = [json.loads(line) for line in lines.read_text().splitlines()]
            read[backend, format] = next(
                span["read"] for span in reversed(spans) if str(span.get("path", "")).endswith("mlp.up_proj")
            )
    for backend in ("meta", "numpy"):
        numbers = [read[backend, format] for format in FORMATS]
        assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) == 4


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_diff_runs_every_format_on_both_sides(folder, capsys, format):
    command = ["diff", "--model", str(folder), "--dtype", format, "--a", "numpy", "--tokens", "5", "--json"]
    assert main([*command, "--b", "numpy:float64", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] in ("same", "noise")
    code = main([*command, "--b", "numpy:bf16-weights", "--no-cache"])
    report = json.loads(capsys.readouterr().out)
    same = report["verdict"] == "same", code == 0
    assert same == (format == "bf16", format == "bf16"), report["reason"]


def test_weights_of_different_formats_are_compared_by_their_numbers(folder):
    eight = open_checkpoint(folder, dtype="int8", keep=False).weights
    again = open_checkpoint(folder, dtype="int8", keep=False).weights
    wide = each_array(eight, lambda tensor: tensor.astype(np.float32))
    assert not differing_weights(eight, again) and not differing_weights(eight, wide)
    rounded = each_array(eight, rounded_to_bf16)
    assert "layers.0.mlp.up_proj.weight" in differing_weights(eight, rounded)
    assert rounded.norm.weight.dtype == np.float32
    stored = open_checkpoint(folder, dtype="bf16").weights
    assert rounded_to_bf16(stored.embed_tokens.weight) is stored.embed_tokens.weight


def test_shapes_without_data_look_like_the_tensors():
    weights = shape_weights(SIZES["72B"].config(), "int4")
    matrix = weights.layers[3].mlp.down_proj.weight
    assert isinstance(matrix, Quantised) and (matrix.shape, matrix.bits) == ((8192, 29568), 4)
    assert weights.embed_tokens.weight.bits == 8
    assert shape_weights(CONFIGS["dense"], "bf16").embed_tokens.weight.dtype == ml_dtypes.bfloat16
