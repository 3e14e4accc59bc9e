"""Every broken folder that we could think of: one line that names the file and says what to do, at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.checkpoint.safetensors_file import HEADER_LIMIT
from tinyqwen.config_json import read_config
from tinyqwen.errors import ModelFilesError
from tinyqwen.weights import random_weights

SINGLE, INDEX, SHARD = "model.safetensors", "model.safetensors.index.json", "model-00002-of-00003.safetensors"

# ---- ways to spoil a good folder: each gives a function of the folder ---------------------------------------------


def cut(name, size):
    """To that many bytes; a negative number counts from the end."""
    return lambda folder: os.truncate(folder / name, size if size >= 0 else os.path.getsize(folder / name) + size)


def holds(name, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def copied(name, to, more=b""):
    return lambda folder: (folder / to).write_bytes((folder / name).read_bytes() + more)


def without(*names):
    """Without these files; if none is named, without any."""
    return lambda folder: [(folder / name).unlink() for name in names or os.listdir(folder)]


def renamed(name):
    return lambda folder: (folder / SINGLE).rename(folder / name)


def replaced(name, make):
    """By something else that `make` makes at its path."""
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def in_turn(*spoilers):
    return lambda folder: [spoil(folder) for spoil in spoilers]


def header(change):
    """`change` takes the bytes of the header and returns others."""

    def spoil(folder):
        data = (folder / SINGLE).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = change(data[8:end])
        (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return spoil


def entry(**changes):
    """What the header says of one tensor; None takes a key out."""

    def change(text):
        entries = json.loads(text)
        said = {**entries["model.norm.weight"], **changes}
        entries["model.norm.weight"] = {key: value for key, value in said.items() if value is not None}
        return json.dumps(entries).encode()

    return header(change)


def index(**shards):
    """Other files in the index (with _ for . in the tensors' names); None takes a tensor out."""

    def spoil(folder):
        said = json.loads((folder / INDEX).read_text())
        said["weight_map"] |= {name.replace("_", "."): shard for name, shard in shards.items()}
        said["weight_map"] = {name: shard for name, shard in said["weight_map"].items() if shard is not None}
        (folder / INDEX).write_text(json.dumps(said))

    return spoil


def tensors(change):
    """The file with other tensors: `change` works on a dict."""

    def spoil(folder):
        config = read_config(folder / "config.json")
        arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_weights(config).items()}
        change(arrays)
        save_file(arrays, folder / SINGLE)

    return spoil


def stored(name, array):
    return tensors(lambda arrays: arrays.update({name: array}))


def config_with(**changes):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def renamed_layers(arrays):
    for name in [name for name in arrays if ".layers." in name]:
        arrays[name.replace(".layers.", ".h.")] = arrays.pop(name)


# ---- the cases: what the error says, and what it names ------------------------------------------------------------

ONES, NORM = np.ones(8, np.float32), "model.norm.weight"
TWICE = b'{"model.norm.weight":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
FOLDER = {
    "missing": (in_turn(without(), Path.rmdir), "no such folder", "model"),
    "is a file": (in_turn(without(), Path.rmdir, Path.touch), "is a file, not a model folder", "model"),
    "empty": (without(), "is empty", "model"),
    "config missing": (without("config.json"), "is missing; download it again", "config.json"),
    "config is a fifo": (replaced("config.json", os.mkfifo), "not a regular file", "config.json"),
    "config cut": (cut("config.json", 20), "cannot be read as JSON", "config.json"),
    "only pickles": (renamed("pytorch_model.bin"), "can run code and are never opened", "pytorch_model.bin"),
    "only pth": (renamed("consolidated.00.pth"), "can run code and are never opened", "consolidated.00.pth"),
    "only gguf": (renamed("qwen2.gguf"), "only GGUF", "qwen2.gguf"),
    "no weights": (without(SINGLE), "has no model.safetensors and no", INDEX),
}
ONE_FILE = {
    "LFS pointer": (holds(SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "Git LFS pointer"),
    "empty": (holds(SINGLE, b""), "has only 0 bytes"),
    "seven bytes": (cut(SINGLE, 7), "has only 7 bytes"),
    "web page": (holds(SINGLE, b"<!DOCTYPE html><html>not found</html>"), "does not begin as a safetensors file does"),
    "header above the limit": (
        holds(SINGLE, (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}"), "does not begin as a safetensors file does",
    ),
    "cut in the header": (cut(SINGLE, 100), "is cut off: expected at least"),
    "cut in the data": (cut(SINGLE, -1), "bytes, found"),
    "bytes too many": (copied(SINGLE, SINGLE, b"x"), "is damaged"),
    "header not UTF-8": (header(lambda text: text[:-2] + b"\xff\xfe"), "header is damaged"),
    "header not JSON": (header(lambda text: text.replace(b":", b";")), "header is damaged"),
    "header deep": (header(lambda text: b"[" * 500_000), "header is damaged"),
    "header a list": (header(lambda text: b"[1]"), "is damaged"),
    "header a huge number": (header(lambda text: b"9" * 5000), "is damaged"),
    "key twice": (header(lambda text: TWICE + text[1:]), "'model.norm.weight' occurs twice"),
    "offsets overlap": (entry(data_offsets=[0, 16]), "is damaged"),
    "offsets negative": (entry(data_offsets=[-16, 0]), "is damaged"),
    "offsets beyond the end": (entry(data_offsets=[0, 1 << 62]), "is cut off: expected"),
    "offsets backwards": (entry(data_offsets=[16, 0]), "is damaged"),
    "offsets missing": (entry(data_offsets=None), "is damaged"),
    "shape overflows": (entry(shape=[1 << 32, 1 << 32, 8]), "is damaged"),
    "shape is not the bytes'": (entry(shape=[7]), "is damaged"),
    "shape of floats": (entry(shape=[8.5]), "is damaged"),
    "dtype unknown": (entry(dtype="F12"), "is damaged"),
    "a folder": (replaced(SINGLE, Path.mkdir), "not a regular file"),
    "a fifo": (replaced(SINGLE, os.mkfifo), "not a regular file"),
    "a broken link": (replaced(SINGLE, lambda path: path.symlink_to("nowhere")), "is a link to nothing"),
    "a circle of links": (replaced(SINGLE, lambda path: path.symlink_to(SINGLE)), "cannot be opened"),
    "a link out": (
        in_turn(renamed("../elsewhere"), lambda folder: (folder / SINGLE).symlink_to(folder.parent / "elsewhere")),
        "is a link out of its folder",
    ),
    "bias missing": (
        tensors(lambda arrays: arrays.pop("model.layers.1.self_attn.k_proj.bias")),
        "1 missing: model.layers.1.self_attn.k_proj.bias; check",
    ),
    "bias unexpected": (
        stored("model.layers.0.self_attn.o_proj.bias", ONES), "1 unexpected: model.layers.0.self_attn.o_proj.bias in",
    ),
    "wrong shape": (stored(NORM, np.ones(9, np.float32)), f"1 of wrong shape: {NORM} is [9], must be [8]"),
    "wrong type": (stored(NORM, np.ones(8, np.int8)), f"1 of a type other than BF16, F16, F32: {NORM} is I8"),
    "doubles": (stored(NORM, np.ones(8)), f"1 of a type other than BF16, F16, F32: {NORM} is F64"),
    "wrong names": (tensors(renamed_layers), "24 missing: "),
    "config of another size": (
        config_with(vocab_size=31), "of wrong shape: model.embed_tokens.weight is [30, 8], must be [31, 8]",
    ),
    "control characters": (stored("model.\x1b[31m\nevil", ONES), "1 unexpected: 'model.\\x1b[31m\\nevil' in"),
    "head misspelt": (stored("lm_head.weights", np.ones((30, 8), np.float32)), "1 unexpected: lm_head.weights in"),
}  # fmt: skip
SHARDS = {
    "index missing": (without(INDEX), "but neither model.safetensors nor", INDEX),
    "missing": (without(SHARD), "is missing", SHARD),
    "cut": (cut(SHARD, -5), "bytes, found", SHARD),
    "a folder": (replaced(SHARD, Path.mkdir), "not a regular file", SHARD),
    "above the folder": (index(model_norm_weight="../../x.safetensors"), "not the plain name", INDEX),
    "absolute": (index(model_norm_weight="/etc/passwd"), "not the plain name", INDEX),
    "a pickle": (index(model_norm_weight="x.bin"), "not the plain name", INDEX),
    "with a newline": (index(model_norm_weight="a\nb.safetensors"), "not the plain name", INDEX),
    "a number": (index(model_norm_weight=3), "not the plain name", INDEX),
    "name too long": (index(model_norm_weight="a" * 300 + ".safetensors"), "cannot be opened", "aaa"),
    "lists too much": (index(model_gone=SHARD), "1 listed in the index but not stored: model.gone in", INDEX),
    "lists too little": (index(model_norm_weight=None), f"1 stored but not listed in the index: {NORM} in", INDEX),
    "tensor in two": (
        in_turn(copied(SHARD, "copy.safetensors"), index(model_x="copy.safetensors")), "stored twice: ", INDEX,
    ),
    "no map": (holds(INDEX, b'{"metadata": {}}'), "has no weight_map", INDEX),
    "empty map": (holds(INDEX, b'{"weight_map": {}}'), "has no weight_map", INDEX),
    "index cut": (cut(INDEX, 50), "cannot be read as JSON", INDEX),
    "key twice": (
        holds(INDEX, b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'), "occurs twice", INDEX,
    ),
}  # fmt: skip
CASES = {
    **{f"folder: {name}": (*case, 10**9) for name, case in FOLDER.items()},
    **{f"file: {name}": (*case, SINGLE, 10**9) for name, case in ONE_FILE.items()},
    **{f"shards: {name}": (*case, 1300) for name, case in SHARDS.items()},
}


@pytest.mark.parametrize(("spoil", "says", "names", "shard"), CASES.values(), ids=CASES)
def test_one_line_that_helps(make_folder, spoil, says, names, shard):
    folder = make_folder(max_shard_bytes=shard)
    spoil(folder)
    began = time.monotonic()
    with pytest.raises(ModelFilesError) as caught:
        open_checkpoint(folder)
    assert time.monotonic() - began < 2
    message = str(caught.value)
    assert says in message and names in message and str(folder) in message
    assert message.isprintable(), "one line, and nothing in it that a terminal would obey"
    assert ";" in message, "a problem; what to do"


def test_all_problems_are_named_at_once_and_five_of_each(make_folder):
    def change(arrays):
        for layer in range(2):
            for name in ("q_proj", "k_proj", "v_proj"):
                arrays.pop(f"model.layers.{layer}.self_attn.{name}.bias")
        arrays[NORM], arrays["x"] = np.ones(3, np.int8), np.ones(1, np.float32)

    folder = make_folder()
    tensors(change)(folder)
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
    config_with(novelty=1)(folder)
    with pytest.raises(ModelFilesError, match="--ignore-config novelty"):
        open_checkpoint(folder)
    open_checkpoint(folder, ignore_config=["novelty"])
