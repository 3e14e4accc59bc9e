"""Quantised weights kept between starts: made once, and mapped from then on.

They are one safetensors file as `quantised_file.py` describes it, weights/KEY.safetensors in the user's cache folder.

The key is a hash of what they were made of: format, layout, and path, size, time and some bytes of every source file. A
file that does not hold exactly the tensors expected is made again; nothing is believed because of its name. A source
that has changed leaves no old copy behind: the new one replaces it.

Keeping is a service: a full disk or a folder that cannot be written costs a warning and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.cache_folder import cache_folder
from tinyqwen.checkpoint.loading import Progress, Tensor, Wanted
from tinyqwen.checkpoint.quantised_file import Entries, entries_of, parts
from tinyqwen.checkpoint.safetensors_file import Stored, read_header
from tinyqwen.checkpoint.save import total_bytes, write_shards
from tinyqwen.errors import ModelFilesError
from tinyqwen.files import size_in_words

VERSION = 1  # of the layout and of the way in which numbers are chosen: older files are then made again
SAMPLES, SAMPLE = 16, 4096  # per source file, bytes each
SPARE = 1 << 30  # bytes of disk that are left to others


class Kept:
    """The place of one model's weights in one format.

    files    what they are made of
    path     the file, which need not exist
    """

    def __init__(self, files: Iterable[Path], wanted: Mapping[str, Wanted]):
        self.entries: Entries = {}
        for name, (format, shape) in wanted.items():
            self.entries |= entries_of(name, shape, format)
        what = [VERSION, sorted(self.entries.items())]
        model = digest([*what, *(str(path.resolve()) for path in files)])
        self.path = cache_folder() / "weights" / f"{model}-{digest([*what, *map(fingerprint, files)])}.safetensors"
        self.others = f"{model}-*.safetensors"  # of the same files, as they were once

    def find(self) -> dict[str, Stored] | None:
        """What the file holds, if it is there, whole, and holds exactly what is wanted."""
        try:
            found = read_header(self.path)
        except ModelFilesError as error:
            if self.path.exists():
                warnings.warn(f"kept weights are damaged and will be made again ({error})", stacklevel=2)
            return None
        if {name: (stored.dtype, stored.shape) for name, stored in found.items()} == self.entries:
            return found
        warnings.warn(f"{self.path}: kept weights are not those of this model and will be made again", stacklevel=2)
        return None

    def keep(self, tensors: Mapping[str, Tensor], progress: Progress | None = None) -> None:
        """Write the tensors, under a temporary name until they are whole. Warns if that is not possible."""
        needed, done = total_bytes(self.entries), 0

        def arrays():
            nonlocal done
            for name, tensor in tensors.items():
                for part, array in parts(name, tensor):
                    yield part, array
                    done += array.nbytes
                    if progress:
                        progress(done, needed)

        part = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.path.parent).free
            if free < needed + SPARE:
                raise OSError(0, f"they need {size_in_words(needed)}, and {size_in_words(free)} are free")
            number, part = tempfile.mkstemp(dir=self.path.parent, prefix=".", suffix=".part")
            os.close(number)
            write_shards({Path(part): list(self.entries)}, self.entries, arrays())
            os.replace(part, self.path)
            for old in self.path.parent.glob(self.others):
                if old != self.path:
                    old.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"quantised weights are not kept for the next start, in {self.path.parent}: {error.strerror}; "
                "--no-cache does without, TINYQWEN_CACHE names another folder",
                stacklevel=2,
            )
        finally:
            if part:
                with contextlib.suppress(OSError):
                    os.unlink(part)


def digest(described: list) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def fingerprint(path: Path) -> list:
    """What changes when a file does: where it is, size, time, and bytes from all over it.

    Times alone are not enough: unpacked and copied files may have the time of another machine, or none.
    """
    stat, sampled = path.stat(), hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for number in range(SAMPLES):
            file.seek((stat.st_size - SAMPLE) * number // (SAMPLES - 1) if stat.st_size > SAMPLE else 0)
            sampled.update(file.read(SAMPLE))
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, sampled.hexdigest()]
