"""Write a model folder as Hugging Face publishes it, tensor by tensor.

All shapes follow from the config, so the headers are written first and every tensor goes straight to its place, in
whatever order it arrives. The safetensors library would want a whole shard in memory at once; the tests hold its
reader, and transformers, against what is written here.

Files are written under temporary names and renamed when all are complete, config.json last: an interrupt or a full disk
leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

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

from tinyqwen.checkpoint.loading import pieces
from tinyqwen.checkpoint.quantised_file import ALIGNMENT, SCALE, Entries
from tinyqwen.checkpoint.safetensors_file import DTYPES, INDEX, SINGLE
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.errors import DiskFullError, UsageError
from tinyqwen.files import clear_errors, size_in_words
from tinyqwen.weights import tensor_shapes

CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # our word -> the file format's
Tensors = Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]


def save_checkpoint(
    folder: Path | str,
    config: Config,
    tensors: Tensors,
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
    entries = {name: (CODES[dtype], shape) for name, shape in tensor_shapes(config).items()}
    write_folder(Path(folder).expanduser(), replace(config, torch_dtype=dtype), entries, tensors, max_shard_bytes)


def write_folder(
    folder: Path,
    config: Config,
    entries: Entries,
    tensors: Tensors,
    max_shard_bytes: int = 4_000_000_000,
    others: Mapping[str, bytes] | None = None,
    replacing: bool = False,
) -> None:
    """Write config.json and these tensors, each in its type and shape. `others`: more files and what is in them.

    replacing   whether files of these names may be written over, and other weight files there be removed
    """
    shards = plan_shards(entries, max_shard_bytes)
    small = {**(others or {}), "config.json": to_json(config).encode()}
    if len(shards) > 1:
        small = {INDEX: index_json(shards, entries).encode(), **small}  # in order of renaming
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not replacing:
            refuse_mixture(folder, {*shards, *small})
        check_room(folder, total_bytes(entries))
        with ExitStack() as cleanup:
            parts = {name: folder / f".{name}.part" for name in (*shards, *small)}
            for part in parts.values():
                cleanup.callback(part.unlink, missing_ok=True)
            write_shards({parts[name]: names for name, names in shards.items()}, entries, tensors)
            for name, content in small.items():
                parts[name].write_bytes(content)
            if replacing:
                for path in {folder / "config.json", *folder.glob("*.safetensors*")} - set(parts.values()):
                    path.unlink(missing_ok=True)
            for name, part in parts.items():
                os.replace(part, folder / name)


def plan_shards(entries: Entries, max_shard_bytes: int) -> dict[str, list[str]]:
    """File names and the tensors of each: in module order, a new shard where the next tensor would pass the limit.

    The published models are split by this rule at 4e9 bytes; a tensor above the limit has a shard to itself. Scales
    stay with their values.

    >>> plan_shards({"a": ("BF16", (3,)), "b": ("F16", (2,)), "c": ("F32", (9,))}, 10)
    {'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        nbytes = entry_bytes(*entry)
        if groups[-1] and size + nbytes > max_shard_bytes and not name.endswith(SCALE):
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def header(names: list[str], entries: Entries) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file that holds these tensors, and where each tensor's bytes begin.

    Names are sorted and the length is padded to 8 bytes, as in the published files; `quantised_file.py` says how files
    with quantised tensors differ.
    """
    described: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say "pt"
    quantised = any(entries[name][0] == "U8" for name in names)

    def place(name: str) -> tuple[int, str]:
        """Whole lines first: what comes after them begins a line, too."""
        values = name.removesuffix(SCALE)
        size = sum(entry_bytes(*entries[each]) for each in (values, values + SCALE) if each in entries)
        return -min(ALIGNMENT, size & -size), name  # the largest power of two that divides the size

    begin = 0
    for name in sorted(names, key=place if quantised else None):
        code, shape = entries[name]
        end = begin + entry_bytes(code, shape)
        described[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % (ALIGNMENT if quantised else 8))
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {
        name: first + entry["data_offsets"][0] for name, entry in described.items() if name != "__metadata__"
    }


def index_json(shards: dict[str, list[str]], entries: Entries) -> str:
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_bytes(entries)}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def write_shards(shards: dict[Path, list[str]], entries: Entries, tensors: Tensors) -> None:
    """Write the tensors to these files, each to its place, in the order in which they come."""
    with ExitStack() as opened:
        files = [opened.enter_context(open(path, "wb")) for path in shards]
        places: dict[str, tuple[BinaryIO, int]] = {}
        for file, names in zip(files, shards.values()):
            start, offsets = header(names, entries)
            file.write(start)
            places |= {name: (file, offset) for name, offset in offsets.items()}
        for name, array in tensors.items() if isinstance(tensors, Mapping) else tensors:
            if name not in places:
                raise ValueError(f"{name} is not a tensor of this config, or came twice")
            code, shape = entries[name]
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, must be {shape}")
            write_tensor(*places.pop(name), name, array, code)
        if places:
            raise ValueError(f"{len(places)} tensors are missing, among them {next(iter(places))}")
        for file in files:
            file.flush()
            os.fsync(file.fileno())  # or a power cut after renaming could leave a file of zeros under the real name


def write_tensor(file: BinaryIO, offset: int, name: str, array: np.ndarray, code: str) -> None:
    """Round the tensor to that type, a piece at a time, and write it at that place."""
    flat = np.asarray(array).reshape(-1)
    file.seek(offset)
    for start, stop in pieces(flat.size):
        try:
            with np.errstate(over="raise"):
                piece = flat[start:stop].astype(DTYPES[code], copy=False)
        except FloatingPointError:
            raise UsageError(f"{name} has numbers above 65504, too large for float16; save as bfloat16") from None
        file.write(piece.view(np.uint8).data)


def entry_bytes(code: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[code].itemsize


def total_bytes(entries: Entries) -> int:
    return sum(entry_bytes(*entry) for entry in entries.values())


def refuse_mixture(folder: Path, names: set[str]) -> None:
    """Old shards beside new ones would be a folder that no reader can trust, and deleting them is not ours to do."""
    others = sorted(path.name for path in folder.glob("*.safetensors*") if path.name not in names)
    if others:
        raise UsageError(f"{folder}: already holds {others[0]} of another checkpoint; save to an empty folder")


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder}: needs {size_in_words(needed)}, but only {size_in_words(free)} are free; make room or save "
            "elsewhere"
        )
