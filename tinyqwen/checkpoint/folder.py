"""A model folder as Hugging Face publishes it: config.json, and weights in one safetensors file or in shards.

    open_checkpoint(folder)
        find the files         config.json, model.safetensors, or model.safetensors.index.json and its shards
        read the headers       safetensors_file.py: is each file whole and consistent?
        take the inventory     inventory.py: exactly the tensors that config.json asks for?
        load                   loading.py: map, widen, round or quantise, once
        keep                   kept.py: what was quantised, for the next start

Only after the first three is a byte of weights read. Pickled weights are never opened: unpickling runs code.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backends.sketch import Sketch
from tinyqwen.checkpoint.inventory import HEAD, TABLE, show, split_experts, take_inventory
from tinyqwen.checkpoint.kept import Kept
from tinyqwen.checkpoint.loading import MappedFile, Progress, Wanted, load, same_values
from tinyqwen.checkpoint.safetensors_file import (
    HEADER_LIMIT,
    INDEX,
    SINGLE,
    Stored,
    one_line,
    read_header,
    refuse_duplicates,
)
from tinyqwen.checkpoint.settling import Settling, is_to_pack, worth_moving, worth_packing, worth_sketching
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.formats import DTYPES, FORMATS, QUANTISED, format_of
from tinyqwen.weights import Node, tensor_shapes, tree


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder.

    folder    where it lies
    config    what config.json says (but see `settle_head`)
    weights   the tree that `tinyqwen.model.forward` takes
    files     the weight files
    format    of the matrices, see `tinyqwen.formats`; mixed if the files mix f32 and bf16 and were opened as they are
    maps      the files that weights are views of, at least at first
    settling  the thread that moves them to where they stay, and draws a sketch of the head, once it is started; see
              `settling.py`
    packing   whether those in bf16 are packed on the way
    """

    folder: Path
    config: Config
    weights: Node
    files: tuple[Path, ...]
    format: str
    maps: tuple[MappedFile, ...] = ()
    settling: Settling | None = None
    packing: bool = False

    @property
    def sketch(self) -> Sketch | None:
        """A sketch of the head, as soon as there is one."""
        return self.settling.sketch if self.settling else None

    @property
    def sketching(self) -> bool:
        """Whether there may be one sooner or later."""
        return self.settling is not None and self.settling.sketches

    def settle(self, wait: bool = True) -> None:
        """Let the weights move to where they stay, which takes a core for a second or more, and wait for the end."""
        if self.settling and self.settling.ident is None:
            self.settling.start()
        if self.settling and wait:
            self.settling.join()

    def check_unchanged(self) -> None:
        """Call before each step of the model: a mapped file that was cut would end the process without a word.

        Costs one system call (about a microsecond) per mapped file; nothing where the weights were widened.
        Errors: ModelFilesError if a mapped file is shorter, longer or newer than when it was opened.
        """
        for file in self.maps:
            file.check_unchanged()


def open_checkpoint(
    folder: Path | str,
    *,
    ignore_config: Sequence[str] = (),
    dtype: str | type | np.dtype | None = None,
    tables: str | None = None,
    keep: bool = True,
    mapped: bool | None = True,
    packed: bool = False,
    sketched: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """The config and the weights of that folder.

    ignore_config   keys of config.json to accept although their effect is unknown
    dtype           f32, bf16, int8, int4 (see `tinyqwen.formats`); np.float32, or np.float64 for telling noise from a
                    bug; auto: as stored, where f16 becomes f32, because bf16 would cut three of its bits; default: f32.
                    A folder that `tinyqwen convert` wrote has one format, and that is its default, too
    tables          int4's embedding and head: int8 (the default) or int4
    keep            whether to keep what was quantised for the next start, see `kept.py`
    mapped          whether what is wanted as it is stored may be the file itself: no time to load, and no memory of its
                    own. False: a copy, which kernels read faster. None: the file at first, and if a copy leaves as much
                    memory free, or is packed, that takes its place while the model works (`settling.py`)
    packed          whether the matrices of a large model in bf16 may be packed, without loss (`backends/packed.py`);
                    for kernels that take them so, and not for a model that is given away
    sketched        whether a sketch of the head may be drawn while the model works, for kernels that read one
    progress        called as progress(bytes_done, bytes_total) while reading, and again while keeping; mapped files
                    count for nothing

    Memory: the weights in that format and at most some MB besides.
    Errors: ModelFilesError, one line that names the file, the problem and what to do; UsageError for a format that the
    folder does not have.

    >>> import tempfile; from tinyqwen.checkpoint import save_checkpoint; from tinyqwen.weights import random_weights
    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(folder, config, random_weights(config))
    >>> checkpoint = open_checkpoint(folder)
    >>> checkpoint.weights.layers[1].mlp.up_proj.weight.shape, checkpoint.weights.embed_tokens.weight.dtype
    ((16, 8), dtype('float32'))
    >>> open_checkpoint(folder, dtype="int8", keep=False).weights.layers[1].mlp.up_proj.weight
    <int8 (16, 8)>
    """
    source = read_source(folder, ignore_config)
    wanted = source.wanted(dtype if dtype is None or isinstance(dtype, str) else name_of(dtype), tables)
    formats = {format for format, shape in wanted.values() if len(shape) > 1}
    inventory, kept = source.inventory, None
    if keep and not source.config.quantization_config and formats.intersection(QUANTISED):
        kept = Kept(source.files, wanted)
        inventory = kept.find() or inventory
    packed, moves = packed and worth_packing(wanted), mapped is None
    tensors, maps = load(inventory, wanted, progress, mapped is not False, packed, later=moves)
    if kept and inventory is source.inventory:
        kept.keep(tensors, progress)
    body = next((format for format in ("int4", "int8") if format in formats), "mixed")
    weights, format = tree(tensors), formats.pop() if len(formats) == 1 else body
    moves = moves and bool(maps) and (packed or worth_moving(maps))
    sketched = sketched and worth_sketching(weights, packed and moves)
    settling = Settling(weights, maps, moves=moves, packed=packed, sketches=sketched) if moves or sketched else None
    packing = packed and moves and any(is_to_pack(array, maps) for array in tensors.values())
    return Checkpoint(source.folder, source.config, weights, source.files, format, maps, settling, packing)


class Source(NamedTuple):
    """A model folder whose headers are read and believed, and none of its tensors.

    inventory   where each tensor lies, under the names of `tinyqwen.weights.tensor_shapes` and those of their scales
    """

    folder: Path
    config: Config
    files: tuple[Path, ...]
    inventory: dict[str, Stored]

    def wanted(self, format: str | None, tables: str | None = None) -> dict[str, Wanted]:
        """What each tensor becomes when the model is wanted in that format; the words are those of `open_checkpoint`.

        Errors: UsageError for a format that this folder cannot be opened in.
        """
        if format not in (None, "auto", "f64", *FORMATS):
            raise UsageError(f"dtype is {format!r} but must be auto, {', '.join(FORMATS)}")
        quantization = self.config.quantization_config
        if quantization:
            for asked, has in ((format, quantization.format), (tables, quantization.tables)):
                if asked not in (None, "auto", has):
                    raise UsageError(
                        f"{self.folder}: holds {has} weights, which cannot become {asked} again; take --dtype auto, "
                        f"or --dtype {asked} with the folder that it was converted from"
                    )
            format, tables = quantization
        wanted = {}
        for name, shape in tensor_shapes(self.config).items():
            kind = format_of(name, shape, format or "f32", tables or "int8")
            if format == "auto":
                kind = "bf16" if len(shape) > 1 and self.inventory[name].dtype == "BF16" else "f32"
            wanted[name] = Wanted(kind, shape)
        return wanted


def read_source(folder: Path | str, ignore_config: Sequence[str] = ()) -> Source:
    """Find the files, read their headers and take the inventory; see `open_checkpoint`."""
    folder = Path(folder).expanduser()
    weights = find_weights(folder)
    config = read_config(regular_file(folder, "config.json"), tuple(ignore_config))
    index = read_index(weights) if weights.name == INDEX else None
    names = [SINGLE] if index is None else list(dict.fromkeys(index.values()))
    files = {folder / name: read_header(regular_file(folder, name)) for name in names}
    config, inventory = settle_head(config, take_inventory(config, files, index, weights))
    return Source(folder, config, tuple(files), split_experts(config, inventory))


def name_of(dtype: type | np.dtype) -> str:
    """f32 or f64, as NumPy means it."""
    for name in ("f32", "f64"):
        if np.dtype(dtype) == DTYPES[name]:
            return name
    raise ValueError(f"dtype must be float32 or float64, or the name of a format, not {dtype}")


def find_weights(folder: Path) -> Path:
    """The folder's single weight file or its index. transformers prefers the single file if there are both.

    Errors: ModelFilesError says what the folder holds instead.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise ModelFilesError(f"{folder}: no such folder; check the path") from None
    except NotADirectoryError:
        hint = "convert it to safetensors" if folder.suffix == ".gguf" else "give the folder that holds config.json"
        raise ModelFilesError(f"{folder}: is a file, not a model folder; {hint}") from None
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{folder}: cannot be listed ({one_line(error)}); check its permissions") from None
    for name in (SINGLE, INDEX):
        if name in names:
            return folder / name

    def first(*patterns: str) -> str:
        return next((name for name in names if any(Path(name).match(pattern) for pattern in patterns)), "")

    if not names:
        raise ModelFilesError(f"{folder}: is empty; download the model into it, or check the path")
    if name := first("*.safetensors"):
        raise ModelFilesError(f"{folder}: has {name} but neither {SINGLE} nor {INDEX}; download the missing file")
    if name := first("*.bin", "*.pt", "*.pth", "*.pkl"):
        raise ModelFilesError(
            f"{folder}: has only pickled weights ({name}); pickle files can run code and are never opened; "
            "convert them to safetensors"
        )
    if name := first("*.gguf"):
        raise ModelFilesError(f"{folder}: has only GGUF weights ({name}); get the model in safetensors format")
    raise ModelFilesError(f"{folder}: has no {SINGLE} and no {INDEX}; is this a Hugging Face model folder?")


def regular_file(folder: Path, name: str) -> Path:
    """The path of that file, if it is an ordinary one inside the folder.

    A FIFO would block for ever, a device may never end, and a link may point anywhere. Links to the place where
    huggingface_hub keeps the contents of its cache are fine: that is how its folders look.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
        if not real.is_file():
            raise ModelFilesError(f"{path}: is not a regular file; put the real file there")
        home = folder.resolve()
    except FileNotFoundError:
        kind = "is a link to nothing" if path.is_symlink() else "is missing"
        raise ModelFilesError(f"{path}: {kind}; download it again") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ModelFilesError(f"{path}: cannot be opened ({one_line(error)}); download it again") from None
    allowed = [home]
    if home.parent.name == "snapshots":  # CACHE/models--Qwen--Qwen2-0.5B/snapshots/COMMIT
        allowed += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
    if not any(real.is_relative_to(place) for place in allowed):
        raise ModelFilesError(f"{path}: is a link out of its folder, to {real}; copy the file, or give that folder")
    return path


def read_index(path: Path) -> dict[str, str]:
    """Which shard holds which tensor, as model.safetensors.index.json says: {tensor name: file name}."""
    path = regular_file(path.parent, path.name)
    try:
        if path.stat().st_size > HEADER_LIMIT:
            raise ValueError("it is far too large for an index")
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFilesError(f"{path}: cannot be read as JSON ({one_line(error)}); download it again") from None
    shards = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ModelFilesError(f"{path}: has no weight_map that names the shards; download it again")
    for name, file in shards.items():
        if not isinstance(file, str) or not file.isprintable() or not re.fullmatch(r"[^/\\]+\.safetensors", file):
            raise ModelFilesError(
                f"{path}: {show(name)} is said to be in {show(str(file))}, which is not the plain name of a "
                ".safetensors file; download the index again"
            )
    return shards


def settle_head(config: Config, inventory: dict[str, Stored]) -> tuple[Config, dict[str, Stored]]:
    """Decide which head a model has whose config says tied and whose files store a head nevertheless.

    Equal to the embedding: it is dropped. Different: the stored head is used and the config returned says untied. So
    does transformers 5 (`PreTrainedModel.tie_weights`), while transformers 4 took the embedding.
    """
    if not (config.tie_word_embeddings and HEAD in inventory):
        return config, inventory
    head = inventory[HEAD]
    if same_values(head, inventory[TABLE]):
        return config, {name: stored for name, stored in inventory.items() if name != HEAD}
    warnings.warn(
        f"{head.path}: config.json says tie_word_embeddings is true, but {HEAD} differs from {TABLE}; "
        f"the stored {HEAD} is used, as transformers 5 does",
        stacklevel=3,
    )
    return dataclasses.replace(config, tie_word_embeddings=False), inventory
