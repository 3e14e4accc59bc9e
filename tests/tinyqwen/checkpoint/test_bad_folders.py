"""Every broken folder that we could think of: one line that names the file and says what to do, at once.

Each case is a function that spoils a good folder, and a piece of the message that it must give.
"""

from __future__ import annotations

import json
import os
import time
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.checkpoint.folder import read_index
from tinyqwen.checkpoint.safetensors_file import HEADER_LIMIT
from tinyqwen.config_json import read_config, to_json
from tinyqwen.errors import ModelFilesError, TinyqwenError
from tinyqwen.weights import random_weights

SINGLE, INDEX, SHARD = "model.safetensors", "model.safetensors.index.json", "model-00002-of-00003.safetensors"
SHORT, LONG = 2_000, 100_000  # mutations

CASES = {}


def case(says: str, names: str = SINGLE, sharded: bool = False):
    """Register a spoiler of a good folder, the words that the error must contain, and the file that it must name."""

    def register(spoil):
        CASES[spoil.__name__] = (spoil, says, names, sharded)
        return spoil

    return register


# ---- the folder -----------------------------------------------------------------------------------------------------


@case("no such folder", "model")
def folder_missing(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@case("is a file, not a model folder", "model")
def folder_is_a_file(folder):
    folder_missing(folder)
    folder.write_text("")


@case("is empty", "model")
def folder_empty(folder):
    for path in folder.iterdir():
        path.unlink()


@case("is missing; download it again", "config.json")
def config_missing(folder):
    (folder / "config.json").unlink()


@case("not a regular file", "config.json")
def config_is_a_fifo(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@case("cannot be read as JSON", "config.json")
def config_cut(folder):
    os.truncate(folder / "config.json", 20)


@case("can run code and are never opened", "pytorch_model.bin")
def only_pickles(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


@case("can run code and are never opened", "consolidated.00.pth")
def only_pth(folder):
    (folder / SINGLE).rename(folder / "consolidated.00.pth")


@case("only GGUF", "qwen2.gguf")
def only_gguf(folder):
    (folder / SINGLE).rename(folder / "qwen2.gguf")


@case("has no model.safetensors and no", "model.safetensors.index.json")
def no_weights(folder):
    (folder / SINGLE).unlink()


@case("but neither model.safetensors nor", INDEX, sharded=True)
def shards_without_index(folder):
    (folder / INDEX).unlink()


# ---- one file -------------------------------------------------------------------------------------------------------


@case("Git LFS pointer")
def lfs_pointer(folder):
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@case("has only 0 bytes")
def file_empty(folder):
    (folder / SINGLE).write_bytes(b"")


@case("has only 7 bytes")
def file_of_seven_bytes(folder):
    os.truncate(folder / SINGLE, 7)


@case("does not begin as a safetensors file does")
def file_is_a_web_page(folder):
    (folder / SINGLE).write_text("<!DOCTYPE html><html>not found</html>")


@case("does not begin as a safetensors file does")
def header_above_the_limit(folder):
    (folder / SINGLE).write_bytes((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}")


@case("is cut off: expected at least")
def cut_in_the_header(folder):
    os.truncate(folder / SINGLE, 100)


@case("bytes, found")
def cut_in_the_data(folder):
    os.truncate(folder / SINGLE, os.path.getsize(folder / SINGLE) - 1)


@case("is damaged")
def bytes_too_many(folder):
    with open(folder / SINGLE, "ab") as file:
        file.write(b"x")


@case("header is damaged")
def header_not_utf8(folder):
    spoil_header(folder, lambda text: text[:-2] + b"\xff\xfe")


@case("header is damaged")
def header_not_json(folder):
    spoil_header(folder, lambda text: text.replace(b":", b";"))


@case("header is damaged")
def header_is_deep(folder):
    spoil_header(folder, lambda text: b"[" * 500_000)


@case("is damaged")
def header_is_a_list(folder):
    spoil_header(folder, lambda text: b"[1]")


@case("is damaged")
def header_is_a_huge_number(folder):
    spoil_header(folder, lambda text: b"9" * 5000)


@case("'model.norm.weight' occurs twice")
def key_twice_in_a_header(folder):
    entry = b'"model.norm.weight":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
    spoil_header(folder, lambda text: b"{" + entry + text[1:])


def spoil_header(folder, change, file=SINGLE):
    data = (folder / file).read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length])
    (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def spoil_entry(folder, change, name="model.norm.weight", file=SINGLE):
    def edit(text):
        header = json.loads(text)
        change(header[name])
        return json.dumps(header).encode()

    spoil_header(folder, edit, file)


@case("is damaged")
def offsets_overlap(folder):
    spoil_entry(folder, lambda entry: entry.update(data_offsets=[0, 16]))


@case("is damaged")
def offsets_negative(folder):
    spoil_entry(folder, lambda entry: entry.update(data_offsets=[-16, 0]))


@case("is cut off: expected")
def offsets_beyond_the_end(folder):
    spoil_entry(folder, lambda entry: entry.update(data_offsets=[entry["data_offsets"][0], 1 << 62]))


@case("is damaged")
def offsets_backwards(folder):
    spoil_entry(folder, lambda entry: entry["data_offsets"].reverse())


@case("is damaged")
def offsets_missing(folder):
    spoil_entry(folder, lambda entry: entry.pop("data_offsets"))


@case("is damaged")
def shape_overflows(folder):
    spoil_entry(folder, lambda entry: entry.update(shape=[1 << 32, 1 << 32, 8]))


@case("is damaged")
def shape_does_not_match_the_bytes(folder):
    spoil_entry(folder, lambda entry: entry.update(shape=[7]))


@case("is damaged")
def shape_of_floats(folder):
    spoil_entry(folder, lambda entry: entry.update(shape=[8.5]))


@case("is damaged")
def dtype_unknown(folder):
    spoil_entry(folder, lambda entry: entry.update(dtype="F12"))


@case("not a regular file")
def file_is_a_folder(folder):
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()


@case("not a regular file")
def file_is_a_fifo(folder):
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)


@case("is a link to nothing")
def file_is_a_broken_link(folder):
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("nowhere")


@case("cannot be opened")
def file_is_a_circle_of_links(folder):
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(SINGLE)


@case("is a link out of its folder")
def file_is_a_link_out(folder):
    (folder / SINGLE).rename(folder.parent / "elsewhere")
    (folder / SINGLE).symlink_to(folder.parent / "elsewhere")


# ---- the index ------------------------------------------------------------------------------------------------------


def spoil_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@case("is missing", SHARD, sharded=True)
def shard_missing(folder):
    (folder / SHARD).unlink()


@case("bytes, found", SHARD, sharded=True)
def shard_cut(folder):
    os.truncate(folder / SHARD, os.path.getsize(folder / SHARD) - 5)


@case("not a regular file", SHARD, sharded=True)
def shard_is_a_folder(folder):
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


@case("not the plain name", INDEX, sharded=True)
def shard_above_the_folder(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": "../../x.safetensors"}))


@case("not the plain name", INDEX, sharded=True)
def shard_absolute(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": "/etc/passwd"}))


@case("not the plain name", INDEX, sharded=True)
def shard_is_a_pickle(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": "x.bin"}))


@case("not the plain name", INDEX, sharded=True)
def shard_with_a_newline(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": "a\nb.safetensors"}))


@case("not the plain name", INDEX, sharded=True)
def shard_is_a_number(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": 3}))


@case("cannot be opened", "aaa", sharded=True)
def shard_name_too_long(folder):
    spoil_index(folder, lambda shards: shards.update({"lm_head.weight": "a" * 300 + ".safetensors"}))


@case("1 listed in the index but not stored: model.gone in", INDEX, sharded=True)
def index_lists_too_much(folder):
    spoil_index(folder, lambda shards: shards.update({"model.gone": SHARD}))


@case("1 stored but not listed in the index: model.norm.weight in", INDEX, sharded=True)
def index_lists_too_little(folder):
    spoil_index(folder, lambda shards: shards.pop("model.norm.weight"))


@case("stored twice: ", INDEX, sharded=True)
def tensor_in_two_shards(folder):
    (folder / "copy.safetensors").write_bytes((folder / SHARD).read_bytes())
    spoil_index(folder, lambda shards: shards.update({"model.x": "copy.safetensors"}))


@case("has no weight_map", INDEX, sharded=True)
def index_without_map(folder):
    (folder / INDEX).write_text('{"metadata": {}}')


@case("has no weight_map", INDEX, sharded=True)
def index_with_empty_map(folder):
    (folder / INDEX).write_text('{"weight_map": {}}')


@case("cannot be read as JSON", INDEX, sharded=True)
def index_cut(folder):
    os.truncate(folder / INDEX, 50)


@case("occurs twice", INDEX, sharded=True)
def key_twice_in_the_index(folder):
    (folder / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')


# ---- the inventory --------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    """The folder's file with other tensors."""
    config = read_config(folder / "config.json")
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_weights(config).items()}
    change(tensors)
    save_file(tensors, folder / SINGLE)


@case("1 missing: model.layers.1.self_attn.k_proj.bias; check")
def bias_missing(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))


@case("1 unexpected: model.layers.0.self_attn.o_proj.bias in")
def bias_unexpected(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": np.ones(8, np.float32)}))


@case("1 of wrong shape: model.norm.weight is [9], must be [8]")
def wrong_shape(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(9, np.float32)}))


@case("1 of a type other than BF16, F16, F32: model.norm.weight is I8")
def wrong_type(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(8, np.int8)}))


@case("1 of a type other than BF16, F16, F32: model.norm.weight is F64")
def doubles(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(8)}))


@case("24 missing: ")
def wrong_names(folder):
    def change(tensors):
        for name in [name for name in tensors if ".layers." in name]:
            tensors[name.replace(".layers.", ".h.")] = tensors.pop(name)

    rewrite(folder, change)


@case("of wrong shape: model.embed_tokens.weight is [30, 8], must be [31, 8]")
def config_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 31}))


@case("1 unexpected: 'model.\\x1b[31m\\nevil' in")
def control_characters_in_a_name(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.\x1b[31m\nevil": np.ones(8, np.float32)}))


@case("1 unexpected: lm_head.weights in")
def head_misspelt(folder):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weights": np.ones((30, 8), np.float32)}))


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_helps(make_folder, name):
    spoil, says, names, sharded = CASES[name]
    folder = make_folder(max_shard_bytes=1300 if sharded else 10**9)
    if sharded:
        assert (folder / SHARD).exists()
    spoil(folder)
    began = time.monotonic()
    with pytest.raises(ModelFilesError) as caught:
        open_checkpoint(folder)
    assert time.monotonic() - began < 2
    message = str(caught.value)
    assert says in message and names in message and str(folder) in message
    assert message.isprintable(), "one line, and nothing in it that a terminal would obey"
    assert ";" in message, "a problem; what to do"


def test_there_are_many():
    assert len(CASES) >= 60


def test_all_problems_are_named_at_once_and_five_of_each(make_folder):
    def change(tensors):
        for layer in range(2):
            for name in ("q_proj", "k_proj", "v_proj"):
                tensors.pop(f"model.layers.{layer}.self_attn.{name}.bias")
        tensors["model.norm.weight"] = np.ones(3, np.int8)
        tensors["x"] = np.ones(1, np.float32)

    folder = make_folder()
    rewrite(folder, change)
    with pytest.raises(ModelFilesError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "6 missing: " in message and message.count("proj.bias") == 5 and "proj.bias, ...;" in message
    assert "1 unexpected: x in model.safetensors" in message
    assert "1 of wrong shape" in message and "1 of a type other" in message


def test_a_cache_of_links_is_a_good_folder(make_folder):
    """huggingface_hub keeps contents in blobs/ and makes folders of links; some releases share blobs between models."""
    real = make_folder(max_shard_bytes=1300)
    home = real.parent / "hub" / "models--a--b"
    folder, own, shared = home / "snapshots" / "0123", home / "blobs", home.parent / "blobs" / "ab"
    for place in (folder, own, shared):
        place.mkdir(parents=True)
    for number, path in enumerate(real.iterdir()):
        place = shared if number % 2 else own
        path.rename(place / f"blob{number}")
        (folder / path.name).symlink_to(place / f"blob{number}")
    assert len(open_checkpoint(folder).files) > 1
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ModelFilesError, match="is a link out of its folder"):
        open_checkpoint(folder)


def test_the_single_file_wins_over_an_index(make_folder):
    folder = make_folder()
    (folder / INDEX).write_text("{}")
    assert [path.name for path in open_checkpoint(folder).files] == [SINGLE]


def test_ignored_config_keys(make_folder):
    folder = make_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "novelty": 1}))
    with pytest.raises(ModelFilesError, match="--ignore-config novelty"):
        open_checkpoint(folder)
    open_checkpoint(folder, ignore_config=["novelty"])


# ---- fuzz: no bytes may lead to anything but success or our errors --------------------------------------------------

JUNK = [b"", b"0", b"-1", b"99999999999999999999", b"null", b"true", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":",
        b"\x00", b"\xff", b"1e999", b"NaN", b"[[[[", b'"F16"', b'"shape"', b'"../x"', b"\\n", b"\\ud800"]  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random edits: cut, overwrite, insert, repeat or swap."""
    for _ in range(rng.integers(1, 5)):
        at, to = sorted(rng.integers(0, len(data) + 1, 2))
        to = min(to, at + rng.integers(0, 20))
        junk = JUNK[rng.integers(len(JUNK))]
        if rng.integers(2):
            junk = rng.integers(0, 256, rng.integers(1, 5), np.uint8).tobytes()
        data = data[:at] + [b"", junk, junk + data[at:to], data[at:to] * 2][rng.integers(4)] + data[to:]
    return data


def fuzz(folder, names: list[str], count: int) -> int:
    """Open the folder that often with one spoiled file each time; how often that was an error of ours."""
    rng = np.random.default_rng(0)
    good = {name: (folder / name).read_bytes() for name in names}
    refused = 0
    for turn in range(count):
        name = names[turn % len(names)]
        data = good[name]
        # Of weights only the header is of interest; the length before it is sometimes spoiled, sometimes mended.
        end = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
        head = mutate(data[:end], rng)
        if name.endswith(".safetensors") and rng.integers(4):
            head = (len(head) - 8 if len(head) > 8 else 0).to_bytes(8, "little") + head[8:]
        (folder / name).write_bytes(head + data[end:])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a head that differs, say
                open_checkpoint(folder)
        except TinyqwenError:
            refused += 1
        (folder / name).write_bytes(data)
    return refused


@pytest.mark.parametrize(
    "count", [pytest.param(SHORT // 3, id="short"), pytest.param(LONG // 3, id="long", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("kind", "shard", "names"),
    [
        ("tied", 10**9, ["config.json", SINGLE]),
        ("untied", 1500, ["config.json", INDEX, "model-00001-of-00003.safetensors"]),
        ("experts", 10**9, [SINGLE]),
    ],
)
def test_fuzz(make_folder, kind, shard, names, count):
    folder = make_folder(kind, max_shard_bytes=shard)
    assert fuzz(folder, names, count) > count // 2


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(LEAF, lambda part: st.lists(part) | st.dictionaries(st.text() | st.just("weight_map"), part))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_json_as_index(tmp_path, value):
    (tmp_path / INDEX).write_text(json.dumps(value))
    try:
        shards = read_index(tmp_path / INDEX)
        assert all(isinstance(name, str) and name.endswith(".safetensors") for name in shards.values())
    except ModelFilesError as error:
        assert "\n" not in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_as_weights(tmp_path, configs, data):
    (tmp_path / "config.json").write_text(to_json(configs["tied"]))
    (tmp_path / SINGLE).write_bytes(data)
    with pytest.raises(ModelFilesError):
        open_checkpoint(tmp_path)
