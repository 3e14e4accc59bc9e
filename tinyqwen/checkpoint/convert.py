"""Write a model folder in another weight format, tensor by tensor, and say what was lost in each.

The folder loads as any other and its weights are, to the bit, those that the source has when it is opened in that
format: matrices are rounded or quantised by the same code, gates are bf16, vectors are copied as they are stored.
Other programs read the bf16 and f32 folders; quantised ones are this project's own (`quantised_file.py`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyqwen.checkpoint.folder import read_source
from tinyqwen.checkpoint.loading import Progress, Tensor, load, pieces_of_rows, read_numbers, run_all
from tinyqwen.checkpoint.quantised_file import Entries, entries_of, parts
from tinyqwen.checkpoint.safetensors_file import Stored
from tinyqwen.checkpoint.save import total_bytes, write_folder
from tinyqwen.config import DualChunk, Quantization
from tinyqwen.context import stretched
from tinyqwen.errors import UsageError
from tinyqwen.formats import QUANTISED

# What else makes a model folder: everything that speaks about text.
COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "LICENSE",
)  # fmt: skip
TORCH = {"f32": "float32", "bf16": "bfloat16"}
# Relative errors that rounding explains, unless a few weights tower above the rest of their groups.
EXPECTED = {"f32": 0.0, "bf16": 0.004, "int8": 0.01, "int4": 0.11}


class Loss(NamedTuple):
    """What a matrix lost: error and weights as sums of squares, from which those of several matrices add up."""

    name: str
    format: str
    error: float
    weight: float

    @property
    def relative(self) -> float:
        """Root mean square error over root mean square weight; of a matrix of zeros, 0."""
        return math.sqrt(self.error / self.weight) if self.weight else 0.0


class Converted(NamedTuple):
    """Bytes of tensors before and after, and what each matrix lost."""

    before: int
    after: int
    losses: list[Loss]


def convert(
    folder: Path | str,
    out: Path | str,
    format: str,
    *,
    tables: str | None = None,
    ignore_config: tuple[str, ...] = (),
    force: bool = False,
    yarn: float | None = None,
    dca: DualChunk | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the model in `folder` to the folder `out` in that format, with its tokenizer files.

    tables     int4's embedding and head: int8 (the default) or int4
    force      write over what `out` holds already
    yarn, dca  what the new config.json says of texts longer than the model was trained on; else what it said before
    progress   called with bytes read and bytes in all

    Memory: the largest tensor in its new format, and some MB. A failure or an interrupt leaves no new file.
    Errors: those of `open_checkpoint` and `save_checkpoint`; UsageError if `out` is the source, or not empty.

    >>> import tempfile; from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
    >>> from tinyqwen.config import Config; from tinyqwen.weights import random_weights
    >>> config = Config(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_checkpoint(folder / "a", config, random_weights(config))
    >>> done = convert(folder / "a", folder / "b", "int8")
    >>> done.losses[0].name, round(done.losses[0].relative, 4), open_checkpoint(folder / "b").format
    ('model.embed_tokens.weight', 0.0056, 'int8')
    """
    source, out = read_source(folder, ignore_config), Path(out).expanduser()
    if out.resolve() == source.folder.resolve():
        raise UsageError(f"{out}: is the model that would be converted; name another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise UsageError(f"{out}: exists and is not empty; name another folder, or pass --force to write over it")
    if source.config.quantization_config:
        raise UsageError(f"{source.folder}: is quantised already; convert the model that it was made from")
    wanted = source.wanted(format, tables)
    entries: Entries = {}
    for name, (kind, shape) in wanted.items():
        as_stored = {name: (source.inventory[name].dtype, shape)}
        entries |= as_stored if len(shape) == 1 else entries_of(name, shape, kind)
    config = stretched(source.config, yarn, dca)
    quantization = Quantization(format, tables or "int8") if format in QUANTISED else None
    config = replace(config, quantization_config=quantization, torch_dtype=TORCH.get(format, "bfloat16"))
    before, losses = sum(source.inventory[name].nbytes for name in wanted), []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        done = 0
        for name, want in wanted.items():
            stored = source.inventory[name]
            tensor = load({name: stored}, {name: want})[0][name]
            if len(want.shape) > 1:
                losses.append(loss(name, stored, tensor, want.format))
            yield from parts(name, tensor)
            done += stored.nbytes
            if progress:
                progress(done, before)

    copied = {name: (source.folder / name).read_bytes() for name in COPIED if (source.folder / name).is_file()}
    existed = out.exists()
    try:
        write_folder(out, config, entries, tensors(), others=copied, replacing=force)
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)  # it holds nothing but what is left of this
        raise
    return Converted(before, total_bytes(entries), losses)


def loss(name: str, stored: Stored, tensor: Tensor, format: str) -> Loss:
    """The difference between a stored matrix and what it has become. Reads it once more, in pieces."""
    O, I = stored.shape  # noqa: E741
    sums: list[tuple[float, float]] = []

    def part(start: int, stop: int) -> None:
        exact_NI = np.empty((stop - start, I), np.float32)
        read_numbers(stored, start * I, stop * I, exact_NI.reshape(-1))
        rows = tensor[start:stop] if isinstance(tensor, np.ndarray) else tensor.tiles(start, stop)
        lost_NI = exact_NI - rows.astype(np.float32)
        sums.append((float(np.vdot(lost_NI, lost_NI)), float(np.vdot(exact_NI, exact_NI))))

    run_all([(0, partial(part, *rows)) for rows in pieces_of_rows(O, I)])
    return Loss(name, format, *map(math.fsum, zip(*sums)))
