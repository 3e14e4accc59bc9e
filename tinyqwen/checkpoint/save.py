"""Write a model folder as Hugging Face publishes it, tensor by tensor.

All shapes follow from the config, so the headers are written first and every tensor goes straight to its place, in
whatever order it arrives. The safetensors library would want a whole shard in memory at once; the tests hold its
reader, and transformers, against what is written here.

Files are written under temporary names and renamed when all are complete, config.json last: an interrupt or a full disk
leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinyqwen.checkpoint.folder import INDEX, SINGLE
from tinyqwen.checkpoint.loading import pieces
from tinyqwen.checkpoint.safetensors_file import DTYPES
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.errors import DiskFullError, UsageError
from tinyqwen.weights import Shapes, tensor_shapes

CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # our word -> the file format's


def save_checkpoint(
    folder: Path | str,
    config: Config,
    tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    dtype: str = "bfloat16",
    max_shard_bytes: int = 4_000_000_000,
) -> None:
    """Write config.json and weights: one file, or shards of at most that many bytes of tensors and an index.

    tensors   by name, or (name, array) pairs that are made one at a time, in any order: those of `tensor_shapes`
    dtype     bfloat16, float16 or float32; rounds to nearest, ties to even

    Errors: DiskFullError; UsageError if the folder cannot be written, holds another checkpoint's files, or a number is
    too large for float16; ValueError if a tensor is missing, unknown or of wrong shape.

    >>> import tempfile; from tinyqwen.weights import random_weights
    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(folder, config, random_weights(config), max_shard_bytes=1000)
    >>> sorted(path.name for path in Path(folder).iterdir())[:3]
    ['config.json', 'model-00001-of-00005.safetensors', 'model-00002-of-00005.safetensors']
    """
    if dtype not in CODES:
        raise UsageError(f"dtype is {dtype!r} but must be one of {', '.join(CODES)}")
    folder = Path(folder).expanduser()
    shapes = tensor_shapes(config)
    shards = plan_shards(shapes, dtype, max_shard_bytes)
    small = {"config.json": to_json(replace(config, torch_dtype=dtype))}
    if len(shards) > 1:
        small = {INDEX: index_json(shards, shapes, dtype), **small}  # in order of renaming
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_mixture(folder, {*shards, *small})
        check_room(folder, math.prod((sum(map(math.prod, shapes.values())), itemsize(dtype))))
        with ExitStack() as cleanup:
            parts = {name: folder / f".{name}.part" for name in (*shards, *small)}
            for part in parts.values():
                cleanup.callback(part.unlink, missing_ok=True)
            write_shards({parts[name]: names for name, names in shards.items()}, shapes, dtype, tensors)
            for name, text in small.items():
                parts[name].write_text(text, encoding="utf-8", newline="\n")
            for name, part in parts.items():
                os.replace(part, folder / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{folder}: the disk is full; nothing was saved; make room or save elsewhere") from None
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); save elsewhere") from None


def plan_shards(shapes: Shapes, dtype: str, max_shard_bytes: int) -> dict[str, list[str]]:
    """File names and the tensors of each: in module order, a new shard where the next tensor would pass the limit.

    The published models are split by this rule at 4e9 bytes; a tensor above the limit has a shard to itself.

    >>> plan_shards({"a": (3,), "b": (2,), "c": (9,)}, "bfloat16", 10)
    {'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * itemsize(dtype)
        if groups[-1] and size + nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def header(names: list[str], shapes: Shapes, dtype: str) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file that holds these tensors, and where each tensor's bytes begin.

    Names are sorted and the length is padded to 8 bytes, as in the published files.
    """
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say "pt"
    begin = 0
    for name in sorted(names):
        end = begin + math.prod(shapes[name]) * itemsize(dtype)
        entries[name] = {"dtype": CODES[dtype], "shape": list(shapes[name]), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {
        name: first + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"
    }


def index_json(shards: dict[str, list[str]], shapes: Shapes, dtype: str) -> str:
    total = sum(map(math.prod, shapes.values())) * itemsize(dtype)
    weight_map = {name: file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def write_shards(
    shards: dict[Path, list[str]],
    shapes: Shapes,
    dtype: str,
    tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write the tensors to these files, each to its place, in the order in which they come."""
    with ExitStack() as opened:
        files = [opened.enter_context(open(path, "wb")) for path in shards]
        places: dict[str, tuple[BinaryIO, int]] = {}
        for file, names in zip(files, shards.values()):
            start, offsets = header(names, shapes, dtype)
            file.write(start)
            places |= {name: (file, offset) for name, offset in offsets.items()}
        for name, array in tensors.items() if isinstance(tensors, Mapping) else tensors:
            if name not in places:
                raise ValueError(f"{name} is not a tensor of this config, or came twice")
            if array.shape != shapes[name]:
                raise ValueError(f"{name} has shape {array.shape}, must be {shapes[name]}")
            write_tensor(*places.pop(name), name, array, dtype)
        if places:
            raise ValueError(f"{len(places)} tensors are missing, among them {next(iter(places))}")
        for file in files:
            file.flush()
            os.fsync(file.fileno())  # or a power cut after renaming could leave a file of zeros under the real name


def write_tensor(file: BinaryIO, offset: int, name: str, array: np.ndarray, dtype: str) -> None:
    """Round the tensor to that type, a piece at a time, and write it at that place."""
    flat = np.asarray(array).reshape(-1)
    file.seek(offset)
    for start, stop in pieces(flat.size):
        try:
            with np.errstate(over="raise"):
                piece = flat[start:stop].astype(DTYPES[CODES[dtype]])
        except FloatingPointError:
            raise UsageError(f"{name} has numbers above 65504, too large for float16; save as bfloat16") from None
        file.write(piece.view(np.uint8).data)


def itemsize(dtype: str) -> int:
    return DTYPES[CODES[dtype]].itemsize


def refuse_mixture(folder: Path, names: set[str]) -> None:
    """Old shards beside new ones would be a folder that no reader can trust, and deleting them is not ours to do."""
    others = sorted(path.name for path in folder.glob("*.safetensors*") if path.name not in names)
    if others:
        raise UsageError(f"{folder}: already holds {others[0]} of another checkpoint; save to an empty folder")


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder}: needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; make room or save elsewhere"
        )
