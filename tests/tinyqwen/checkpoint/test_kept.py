"""Kept quantised weights: mapped at the next start, never believed blindly, and never a reason to fail."""

from __future__ import annotations

import os
import warnings
from collections import namedtuple

import numpy as np
import pytest

from backends.quantised import Quantised
from tests.helpers import CONFIGS
from tinyqwen.checkpoint import kept, open_checkpoint, save_checkpoint
from tinyqwen.checkpoint.safetensors_file import read_header
from tinyqwen.errors import ModelFilesError
from tinyqwen.weights import random_weights, walk


def matrices(checkpoint) -> dict[str, Quantised]:
    return {path: tensor for path, tensor in walk(checkpoint.weights) if isinstance(tensor, Quantised)}


def same(one, other) -> bool:
    a, b = matrices(one), matrices(other)
    return set(a) == set(b) != set() and all(
        np.array_equal(a[path].values, b[path].values) and np.array_equal(a[path].scales, b[path].scales) for path in a
    )


def is_mapped(checkpoint, cache) -> bool:
    return any(file.path.parent == cache for file in checkpoint.maps)


@pytest.fixture
def folder(tmp_path):
    """A model whose matrices have more than one tile, and tiles and groups that are odd in number."""
    save_checkpoint(tmp_path / "model", CONFIGS["moe"], random_weights(CONFIGS["moe"]))
    return tmp_path / "model"


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_the_second_start_maps_the_same_weights(folder, cache, format):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = []
        first = open_checkpoint(folder, dtype=format, progress=lambda done, total: seen.append(done / total))
        again = open_checkpoint(folder, dtype=format)
    assert not is_mapped(first, cache) and is_mapped(again, cache) and len(again.maps) == 1
    assert same(first, again) and again.format == format
    assert seen.count(1.0) == 2 and seen[-1] == 1.0, "reading and keeping"
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    again.check_unchanged()


def test_tensors_begin_at_whole_lines_and_scales_follow_their_values(folder, cache):
    open_checkpoint(folder, dtype="int4")
    found = read_header(next(cache.iterdir()))
    lines = 0
    for name, stored in found.items():
        if stored.dtype == "U8":
            scales = found[name + "_scale"]
            assert scales.offset == stored.offset + stored.nbytes and scales.offset % 32 == 0
            if (stored.nbytes + scales.nbytes) % 64 == 0:
                assert stored.offset % 64 == 0
                lines += 1
    assert lines > 10


def test_real_shapes_begin_at_whole_lines_without_exception():
    from tinyqwen.checkpoint.quantised_file import quantised_entries
    from tinyqwen.checkpoint.save import header
    from tinyqwen.config import Quantization
    from tinyqwen.sizes import SIZES

    for size in ("0.5B", "1.5B", "7B", "57B-A14B", "72B"):
        config = SIZES[size].config()
        object.__setattr__(config, "quantization_config", Quantization("int4"))
        entries = {name: (code or "BF16", shape) for name, (code, shape) in quantised_entries(config).items()}
        start, offsets = header(list(entries), entries)
        assert len(start) % 64 == 0
        assert all(offsets[name] % 64 == 0 for name, (code, _) in entries.items() if code == "U8")


def test_nothing_is_kept_when_not_wanted_or_not_quantised(folder, cache):
    open_checkpoint(folder, dtype="int8", keep=False)
    open_checkpoint(folder, dtype="bf16")
    assert not cache.exists()


def test_each_format_has_a_file_of_its_own(folder, cache):
    for format, tables in (("int8", None), ("int4", None), ("int4", "int4"), ("int4", "int8")):
        open_checkpoint(folder, dtype=format, tables=tables)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("change", ["time", "bytes", "size"])
def test_a_changed_source_is_quantised_anew_and_replaces_the_old(folder, cache, change):
    first = open_checkpoint(folder, dtype="int8")
    before = next(cache.iterdir())
    weights = folder / "model.safetensors"
    if change == "time":
        os.utime(weights, ns=(1, 1))
    else:
        stat = weights.stat()
        save_checkpoint(folder, CONFIGS["moe"], random_weights(CONFIGS["moe"], seed=5),
                        "float32" if change == "size" else "bfloat16")  # fmt: skip
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = open_checkpoint(folder, dtype="int8")
    assert not is_mapped(second, cache) and same(first, second) == (change == "time")
    assert before not in cache.iterdir() and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "longer", "other"])
def test_damage_is_seen_said_and_mended(folder, cache, damage):
    first = open_checkpoint(folder, dtype="int8")
    path = next(cache.iterdir())
    whole = path.read_bytes()
    if damage == "other":  # a good file of another model under this name
        save_checkpoint(folder.parent / "other", CONFIGS["tied"], random_weights(CONFIGS["tied"]))
        open_checkpoint(folder.parent / "other", dtype="int8")
        path.write_bytes(next(each for each in cache.iterdir() if each != path).read_bytes())
    else:
        cut = len(whole) // 2
        changes = {"cut": whole[:cut], "zeros": bytes(len(whole)), "empty": b"", "longer": whole + b"x"}
        path.write_bytes(changes[damage])
    with pytest.warns(UserWarning, match="kept weights are .* made again"):
        second = open_checkpoint(folder, dtype="int8")
    assert same(first, second) and path.read_bytes() == whole
    assert is_mapped(open_checkpoint(folder, dtype="int8"), cache)


def test_a_kept_file_that_is_cut_while_mapped_is_noticed(folder, cache):
    open_checkpoint(folder, dtype="int8")
    second = open_checkpoint(folder, dtype="int8")
    os.truncate(next(cache.iterdir()), 100)
    with pytest.raises(ModelFilesError, match="was cut"):
        second.check_unchanged()


def test_a_full_disk_only_warns(folder, cache, monkeypatch):
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(10**9))
    with pytest.warns(UserWarning, match=r"not kept .* 1.0 GB are free.*--no-cache"):
        assert matrices(open_checkpoint(folder, dtype="int8"))
    assert not list(cache.iterdir())


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(folder, cache, monkeypatch, stop):
    def write(*arguments):
        assert len(list(cache.iterdir())) == 1, "under a temporary name"
        raise stop

    monkeypatch.setattr("tinyqwen.checkpoint.save.write_tensor", write)
    with pytest.raises(KeyboardInterrupt) if isinstance(stop, KeyboardInterrupt) else pytest.warns(UserWarning):
        open_checkpoint(folder, dtype="int8")
    assert not list(cache.iterdir())


def test_a_cache_folder_that_cannot_be_made_only_warns(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept"):
        assert matrices(open_checkpoint(folder, dtype="int8"))


def test_a_kept_model_runs_as_one_that_was_just_made(folder, cache):
    import backends
    from tests.helpers import logits_of, tokens

    config = CONFIGS["moe"]
    one, two = (open_checkpoint(folder, dtype="int4") for _ in range(2))
    assert is_mapped(two, cache)
    logits = [logits_of(backends.get("numpy"), config, each.weights, tokens(config, 5)) for each in (one, two)]
    np.testing.assert_array_equal(*logits)
