"""No bytes in a folder may lead to anything but success or our errors."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.checkpoint.folder import read_index
from tinyqwen.config_json import to_json
from tinyqwen.errors import ModelFilesError, TinyqwenError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHORT, LONG = 2_000, 100_000  # mutations
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
