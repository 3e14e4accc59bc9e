"""One safetensors file: which tensors it says it holds, and why it is believed.

A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes end to end:

    {"model.norm.weight": {"dtype": "BF16", "shape": [896], "data_offsets": [0, 1792]}, ...}

A file may come from anybody, so nothing is allocated or read on its word alone. The safetensors library checks the
structure: offsets without holes or overlap that end exactly where the file ends, and shape times item size equal to
them. Read here as well, because the library accepts it silently (the last one wins): a name that occurs twice.

Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tinyqwen.errors import ModelFilesError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # what a model folder has one of

# The types of published weights, and the bytes that quantised ones of our own lie in (`quantised_file.py`). Others
# (fp8, 4 bits packed elsewhere) have scales of their own kinds beside them, so they are not just rows here.
FLOATS = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
DTYPES = {**FLOATS, "U8": np.dtype(np.uint8)}

# Bytes. The format allows 100 MB, but reading so many names into Python would take 15 s and 2 GB, and a file can claim
# them for nothing. The whole 57B-A14B in one file would need less than 1 MB.
HEADER_LIMIT = 10_000_000


class Stored(NamedTuple):
    """A tensor in a file: where its bytes are, and of what type and shape.

    offset   first byte, counted from the start of the file
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file; for the types of DTYPES only."""
        return self.size * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of that file by name, after checking that the file is whole and consistent. Reads no tensor.

    Errors: ModelFilesError says what is wrong with the file, in one line.

    >>> import tempfile; from safetensors.numpy import save_file
    >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
    >>> save_file({"model.norm.weight": np.ones(4, np.float32)}, path)
    >>> read_header(path)["model.norm.weight"].shape
    (4,)
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ModelFilesError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` there")
            if size < 8:
                raise ModelFilesError(f"{path}: has only {size} bytes, so a download broke off; download it again")
            length = int.from_bytes(start, "little")
            if length > HEADER_LIMIT:
                raise ModelFilesError(
                    f"{path}: does not begin as a safetensors file does (its header would have {length:,} bytes); "
                    "download it again"
                )
            if 8 + length > size:
                raise ModelFilesError(
                    f"{path}: is cut off: expected at least {8 + length:,} bytes, found {size:,}; download it again"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelFilesError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{path}: its header is damaged ({one_line(error)}); download it again") from None
    try:
        # pread: mapping the file here could end the whole process if somebody cut it meanwhile (SIGBUS)
        with safe_open(path, "np", backend="pread"):
            pass
    except (SafetensorError, OSError) as error:
        expected = described_size(header, length)
        if expected is not None and expected > size:
            raise ModelFilesError(
                f"{path}: is cut off: expected {expected:,} bytes, found {size:,}; download it again"
            ) from None
        raise ModelFilesError(f"{path}: is damaged ({one_line(error)}); download it again") from None

    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """For `json.loads(object_pairs_hook=...)`: a dict, unless a key occurs twice.

    >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=refuse_duplicates)
    Traceback (most recent call last):
    ValueError: 'a' occurs twice
    """
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} occurs twice")
        result[key] = value
    return result


def described_size(header: dict, length: int) -> int | None:
    """How large the file would be if it held all that its header describes; None if the header makes no sense."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


def one_line(error: Exception) -> str:
    """The message of an error of another library, without newlines and of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
