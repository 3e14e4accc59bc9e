"""save_checkpoint: the published layout, exact rounding, and nothing half-written under a real name."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open

from tinyqwen.checkpoint import open_checkpoint, save, save_checkpoint
from tinyqwen.checkpoint.save import header, index_json, plan_shards
from tinyqwen.errors import DiskFullError, UsageError
from tinyqwen.sizes import SIZES
from tinyqwen.weights import random_weights, tensor_shapes


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("0.5B", [988_097_824]),
        ("7B", [3_945_426_872, 3_864_726_352, 3_864_726_408, 3_556_392_240]),
    ],
)
def test_file_sizes_are_the_published_ones(size, published):
    """To the byte: so names, shapes, types, the split into shards and the header's layout are right."""
    entries = {name: ("BF16", shape) for name, shape in tensor_shapes(SIZES[size].config()).items()}
    shards = plan_shards(entries, 4_000_000_000)
    assert published == [
        len(header(names, entries)[0]) + sum(2 * int(np.prod(entries[name][1])) for name in names)
        for names in shards.values()
    ]


def test_index_is_laid_out_as_published():
    entries = {name: ("BF16", shape) for name, shape in tensor_shapes(SIZES["7B"].config()).items()}
    text = index_json(plan_shards(entries, 4_000_000_000), entries)
    index = json.loads(text)
    assert len(text) == 27_752  # bytes of the published file
    assert list(index["weight_map"]) == sorted(entries)
    assert text.startswith('{\n  "metadata": {\n    "total_size": 15231233024\n  },\n  "weight_map": {\n    "lm_head')


@example([3, 2, 1], 10)  # exactly full
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_shards_hold_everything_once_and_are_full(counts, limit):
    entries = {f"t{i}": ("F16", (count,)) for i, count in enumerate(counts)}
    shards = plan_shards(entries, limit)
    assert [name for names in shards.values() for name in names] == list(entries)
    groups = list(shards.values())
    for group, following in zip(groups, [*groups[1:], None]):
        size = sum(2 * entries[name][1][0] for name in group)
        assert size <= limit or len(group) == 1
        assert following is None or size + 2 * entries[following[0]][1][0] > limit


@pytest.mark.parametrize("shard", [10**9, 3000])
def test_the_library_reads_it(tmp_path, config, shard):
    tensors = random_weights(config)
    save_checkpoint(tmp_path, config, tensors, "float32", shard)
    seen = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
            assert list(file.offset_keys()) == sorted(file.keys())
            seen |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(seen) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(seen[name], array, strict=True)


def test_bfloat16_rounds_to_nearest_even(tmp_path, configs):
    config = configs["tied"]
    tensors = random_weights(config)
    bits = np.random.default_rng(0).integers(0, 0x7F00_0000, 8, np.uint32) & 0xFFFF_0000 | 0x8000  # ties
    tensors["model.norm.weight"] = bits.view(np.float32)
    save_checkpoint(tmp_path, config, tensors)
    got = open_checkpoint(tmp_path).weights.norm.weight
    np.testing.assert_array_equal(got.view(np.uint32), (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
    np.testing.assert_array_equal(got, tensors["model.norm.weight"].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_streams_in_any_order_and_from_any_view(tmp_path, config):
    tensors = random_weights(config)
    backwards = ((name, np.asfortranarray(array).astype(np.float64)) for name, array in reversed(tensors.items()))
    save_checkpoint(tmp_path / "a", config, backwards, max_shard_bytes=3000)
    save_checkpoint(tmp_path / "b", config, tensors, max_shard_bytes=3000)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_too_large_for_float16(tmp_path, configs):
    tensors = random_weights(configs["tied"])
    tensors["model.norm.weight"][3] = 1e5
    with pytest.raises(UsageError, match=r"model.norm.weight has numbers above 65504.*bfloat16"):
        save_checkpoint(tmp_path, configs["tied"], tensors, "float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["drop", "add", "reshape", "twice"])
def test_wrong_tensors_leave_nothing(tmp_path, configs, change):
    tensors = list(random_weights(configs["tied"]).items())
    if change == "drop":
        tensors.pop()
    elif change == "add":
        tensors.append(("model.extra", np.ones(2, np.float32)))
    elif change == "twice":
        tensors.append(tensors[0])
    else:
        tensors[0] = (tensors[0][0], tensors[0][1].T)
    with pytest.raises(ValueError, match="model"):
        save_checkpoint(tmp_path, configs["tied"], tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("shard", [10**9, 3000])
def test_full_disk_or_interrupt_leaves_nothing(tmp_path, configs, stops_writing, after, shard):
    with stops_writing(after):
        save_checkpoint(tmp_path, configs["tied"], random_weights(configs["tied"]), max_shard_bytes=shard)
    assert not list(tmp_path.iterdir())


def test_renamed_when_all_are_complete_and_config_last(tmp_path, configs, monkeypatch):
    renamed, real = [], save.os.replace

    def replace(part, name):
        assert len(list(tmp_path.glob(".*.part"))) + len(renamed) == 5, "all are there before the first is renamed"
        renamed.append(name.name)
        real(part, name)

    monkeypatch.setattr(save.os, "replace", replace)
    save_checkpoint(tmp_path, configs["tied"], random_weights(configs["tied"]), max_shard_bytes=1300)
    assert renamed[3:] == ["model.safetensors.index.json", "config.json"]


def test_interrupted_overwrite_keeps_the_old_checkpoint(make_folder, configs, monkeypatch):
    folder = make_folder()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(save.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DiskFullError, match="the disk is full; nothing was saved"):
        save_checkpoint(folder, configs["tied"], random_weights(configs["tied"], seed=9))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_room_is_checked_first(tmp_path, configs, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(100))
    with pytest.raises(DiskFullError, match="needs 3 kB, but only 0 kB are free"):
        save_checkpoint(tmp_path, configs["tied"], iter(()))


def test_a_folder_with_another_checkpoint_is_refused(make_folder, configs):
    folder = make_folder(max_shard_bytes=1000)
    with pytest.raises(UsageError, match="already holds model-00001-of"):
        save_checkpoint(folder, configs["tied"], random_weights(configs["tied"]))
    open_checkpoint(folder)


def test_a_place_that_cannot_be_written(tmp_path, configs):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "x", configs["tied"], iter(()))
    with pytest.raises(UsageError, match="must be one of"):
        save_checkpoint(tmp_path, configs["tied"], iter(()), "int4")
