"""convert: what it writes loads back to the bit, what it lost is bounded, and nothing is half-written."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from backends.quantised import Quantised
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import CONFIGS
from tinyqwen.checkpoint import open_checkpoint, save, save_checkpoint
from tinyqwen.checkpoint.convert import EXPECTED, convert
from tinyqwen.cli.main import main
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.formats import FORMATS, QUANTISED, weight_bytes
from tinyqwen.weights import Node, random_weights, walk

SEVERAL = {"dense": "bfloat16", "tied": "float32", "moe": "float16"}


def assert_same(one, other) -> None:
    a, b = (dict(walk(checkpoint.weights)) for checkpoint in (one, other))
    assert set(a) == set(b)
    for path, tensor in a.items():
        if isinstance(tensor, Quantised):
            assert tensor.bits == b[path].bits
            np.testing.assert_array_equal(tensor.values, b[path].values, err_msg=path, strict=True)
            np.testing.assert_array_equal(tensor.scales, b[path].scales, err_msg=path, strict=True)
        elif not isinstance(tensor, Node):
            np.testing.assert_array_equal(tensor, b[path], err_msg=path, strict=True)


@pytest.fixture
def source(tmp_path):
    write_tiny_checkpoint(tmp_path / "source", dtype="bfloat16", hidden_size=64, intermediate_size=96)
    return tmp_path / "source"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SEVERAL)
def test_what_was_converted_loads_as_the_source_in_that_format(tmp_path, cache, name, format):
    config = CONFIGS[name]
    save_checkpoint(tmp_path / "a", config, random_weights(config), SEVERAL[name])
    done = convert(tmp_path / "a", tmp_path / "b", format)
    converted, original = open_checkpoint(tmp_path / "b", dtype="auto"), open_checkpoint(tmp_path / "a", dtype=format)
    assert_same(converted, original)
    assert converted.format == format
    assert (converted.weights.lm_head is converted.weights.embed_tokens) == (name == "tied")
    assert_same(open_checkpoint(tmp_path / "b", dtype=format), original)
    if format in QUANTISED:
        assert_same(open_checkpoint(tmp_path / "b"), original)  # the default is the folder's own format
    file = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert done.after == len(file) - 8 - int.from_bytes(file[:8], "little")
    assert done.before == sum(array.size * {"bfloat16": 2, "float16": 2, "float32": 4}[SEVERAL[name]]
                              for array in random_weights(config).values())  # fmt: skip


@pytest.mark.parametrize("format", QUANTISED)
def test_the_file_has_the_announced_size_and_the_documented_names(source, tmp_path, format):
    done = convert(source, tmp_path / "out", format)
    config = read_config(tmp_path / "out" / "config.json")
    assert done.after == weight_bytes(config, format)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        name = "model.layers.0.self_attn.q_proj.weight"
        values, scales = file.get_slice(name), file.get_slice(name + "_scale")
        bits = {"int8": 8, "int4": 4}[format]
        assert (values.get_dtype(), scales.get_dtype()) == ("U8", "BF16")
        assert (values.get_shape(), scales.get_shape()) == ([4, 2 * bits, 16, 4], [4, 2, 16])
    raw = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert raw == {"quant_method": "tinyqwen", "version": 1, "group_size": 32, "format": format, "tables": "int8"}


def test_shards_and_tables_of_int4(source, tmp_path, monkeypatch):
    real = save.plan_shards
    monkeypatch.setattr(save, "plan_shards", lambda entries, limit: real(entries, 10_000))
    convert(source, tmp_path / "out", "int4", tables="int4")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.weights.embed_tokens.weight.bits == 4
    assert_same(checkpoint, open_checkpoint(source, dtype="int4", tables="int4"))
    with pytest.raises(UsageError, match="holds int4 weights, which cannot become int8"):
        open_checkpoint(tmp_path / "out", tables="int8")


def test_losses_are_those_of_the_weights_and_bounded(tmp_path):
    config = Config(hidden_size=256, intermediate_size=300, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, vocab_size=500)  # fmt: skip
    tensors = random_weights(config)
    save_checkpoint(tmp_path / "a", config, tensors, "float32")
    for format in FORMATS:
        losses = {each.name: each for each in convert(tmp_path / "a", tmp_path / format, format).losses}
        assert set(losses) == {name for name, array in tensors.items() if array.ndim == 2}
        weights = dict(walk(open_checkpoint(tmp_path / format, dtype="auto").weights))
        for name, each in losses.items():
            exact = tensors[name].astype(np.float64)
            error = weights[name.removeprefix("model.")].astype(np.float64) - exact
            assert each.relative == pytest.approx(np.sqrt((error**2).sum() / (exact**2).sum()), rel=1e-4)
            assert each.relative <= EXPECTED[each.format]
            assert each.relative >= {"f32": 0, "bf16": 0.001, "int8": 0.003, "int4": 0.05}[each.format]


def test_text_files_come_along(source, tmp_path):
    convert(source, tmp_path / "out", "int8")
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_full_folder_is_refused_and_force_writes_over_it(source, tmp_path):
    out = tmp_path / "out"
    save_checkpoint(out, CONFIGS["moe"], random_weights(CONFIGS["moe"]), max_shard_bytes=10_000)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"not empty.*--force"):
        convert(source, out, "int8")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    convert(source, out, "int8", force=True)
    assert_same(open_checkpoint(out), open_checkpoint(source, dtype="int8"))
    assert (out / "notes.txt").read_text() == "mine" and len(list(out.glob("*.safetensors*"))) == 1


def test_the_source_itself_and_quantised_sources_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match="is the model that would be converted"):
        convert(source, source, "int8", force=True)
    convert(source, tmp_path / "out", "int8")
    with pytest.raises(UsageError, match="is quantised already"):
        convert(tmp_path / "out", tmp_path / "again", "int4")
    for format in ("f32", "bf16", "int4"):
        with pytest.raises(UsageError, match=f"holds int8 weights, which cannot become {format} again; take --dtype"):
            open_checkpoint(tmp_path / "out", dtype=format)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_or_an_interrupt_leaves_nothing_new(source, tmp_path, stops_writing, force, after):
    out = tmp_path / "out"
    if force:
        convert(source, out, "int4")
    before = {path.name: path.read_bytes() for path in out.iterdir()} if force else None
    with stops_writing(after):
        convert(source, out, "int8", force=force)
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None) == before


def test_a_quantised_folder_that_lacks_or_has_too_much_is_refused(source, tmp_path):
    out = tmp_path / "out"
    convert(source, out, "int8")
    config = (out / "config.json").read_text()
    for change, words in (
        (('"format": "int8"', '"format": "int4"'), r"q_proj.weight is \[4, 16, 16, 4\], must be \[4, 8, 16, 4\]"),
        (('"version": 1', '"version": 2'), "quantization_config"),
        (("tinyqwen", "gptq"), "quantization_config"),
    ):
        assert change[0] in config
        (out / "config.json").write_text(config.replace(*change))
        with pytest.raises(ModelFilesError, match=words):
            open_checkpoint(out)
    raw = json.loads(config)
    del raw["quantization_config"]
    (out / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelFilesError, match="unexpected"):
        open_checkpoint(out)


def test_a_file_whose_scales_are_of_another_type_is_refused(source, tmp_path):
    convert(source, tmp_path / "out", "int8")
    path = tmp_path / "out" / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"BF16","shape":[4,2,16]', b'"F16" ,"shape":[4,2,16]')
    path.write_bytes(data[:8] + header + data[8 + length :])
    with pytest.raises(ModelFilesError, match=r"of wrong type: .*_scale is F16, must be BF16"):
        open_checkpoint(tmp_path / "out")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_shows_sizes_and_errors(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["convert", "--model", str(source), "--dtype", "int8", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert " before, " in out and "layers.1" in out and "embed_tokens" in out and "%" in out and not err
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert main(["convert", "--model", str(source), "--dtype", "int4", "--json", str(tmp_path / "four")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes_after"] < facts["bytes_before"] and facts["dtype"] == "int4"
    assert facts["matrices"]["model.embed_tokens.weight"]["format"] == "int8"
    assert set(facts["layers"]) == {"embed_tokens", "layers.0", "layers.1"}
    assert main(["convert", "--model", str(source), "--dtype", "int4", str(tmp_path / "four")]) == 2
    assert "--force" in capsys.readouterr().err


def test_unusual_weights_are_said(tmp_path, capsys):
    config = CONFIGS["dense"]
    tensors = random_weights(config)
    tensors["model.layers.1.mlp.up_proj.weight"][:, 0] = 100  # one weight in each group towers above the rest
    save_checkpoint(tmp_path / "a", config, tensors, "float32")
    command = ["convert", "--model", str(tmp_path / "a"), "--dtype", "int4", str(tmp_path / "b"), "-q", "--force"]
    assert main(command) == 0
    assert not capsys.readouterr().err, "what is lost is small beside what towers"
    tensors["model.layers.1.mlp.up_proj.weight"][...] = np.where(np.arange(20) % 20 == 0, 8, 0.49)
    save_checkpoint(tmp_path / "a", config, tensors, "float32")
    assert main(command) == 0
    assert "layers.1.mlp.up_proj.weight lost" in capsys.readouterr().err


def test_chat_runs_what_was_converted_and_formats_go_through_the_flags(source, tmp_path, capsys, cache):
    convert(source, tmp_path / "out", "int8")
    answers = []
    for arguments in (["--model", str(tmp_path / "out")], ["--model", str(source), "--dtype", "int8"],
                      ["--model", str(source), "--dtype", "int8", "--no-cache"]):  # fmt: skip
        assert main(["generate", *arguments, "--greedy", "-n", "5", "--raw", "--json", "hello"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
        assert cache.exists() == (len(answers) > 1)
    assert answers[0] == answers[1] == answers[2]
    assert main(["generate", "--model", str(tmp_path / "out"), "--dtype", "bf16", "-n", "1", "hello"]) == 2
    error = capsys.readouterr().err
    assert "holds int8 weights" in error and len(error.splitlines()) == 1
    assert os.listdir(cache)


@pytest.mark.parametrize("flags, key, said", [
    (("--yarn", "2"), "rope_scaling", {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}),
    (("--dca", "256,32"), "dual_chunk_attention_config",
     {"chunk_size": 256, "local_size": 32, "original_max_position_embeddings": 0}),
])  # fmt: skip
def test_what_the_flags_say_of_long_texts_is_what_config_json_says(source, tmp_path, capsys, flags, key, said):
    """Whoever loads the folder runs it so, without a flag: it says what the source says with the flag."""
    assert main(["convert", "-m", str(source), "--dtype", "bf16", *flags, str(tmp_path / "out"), "-q"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == said
    ask = ["generate", "--greedy", "-n", "5", "--json", "--backend", "numpy", "--raw", "x " * 400]
    for more in ([str(source), *flags], [str(tmp_path / "out")]):
        assert main([*ask, "-m", *more]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["tokens"] == second["tokens"] and first["usage"]["prompt_tokens"] == 800
    assert main(["convert", "-m", str(tmp_path / "out"), "--dtype", "f32", "--yarn", "3", "--dca", "256,32",
                 str(tmp_path / "no")]) == 2  # fmt: skip
    assert "would both stretch the context" in capsys.readouterr().err and not (tmp_path / "no").exists()
