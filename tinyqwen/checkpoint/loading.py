"""From stored bytes to arrays, holding nothing twice.

Tensors wanted as they are stored may be mapped: the array *is* the file, loading costs nothing, and the operating
system reads the pages that are used. All others are read with ordinary reads, piece by piece, and widened, rounded or
quantised straight into their place in the result: besides the result, memory holds a piece (some MB) per thread.

A copy in pages of 2 MB (`large_pages.py`) is read faster than a mapped file, whose pages have 4 KB: a token of the 0.5B
takes 15.2 ms instead of 17.2 in int8, 36.9 instead of 38.7 in bf16. `settling.py` makes it while the model works.

Where the processor multiplies bfloat16, that copy of a large model has 12 bits a weight (`backends/packed.py`), without
loss: 0.8 ns a weight and core, so 0.4 s for the 0.5B, and a quarter less to read for every token.

Widening bf16 to float32 is a shift by 16 bits, so it is exact and as fast as memory. Measured with 2 cores, Qwen2-0.5B
in bf16 (988 MB, in the file cache): 0.3 s, against 0.4 s for filling the 1.98 GB of the result with zeros. Quantising
is arithmetic: the same folder becomes int8 in 2.8 s and int4 in 5.0 s; kept (`kept.py`), it opens in 0.02 s.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.large_pages import LargePages
from backends.packed import Packed, can_pack
from backends.quantised import BITS, ROWS, Quantised, empty, quantise
from tinyqwen.checkpoint.quantised_file import ALIGNMENT, SCALE
from tinyqwen.checkpoint.safetensors_file import DTYPES, Stored
from tinyqwen.errors import ModelFilesError
from tinyqwen.formats import DTYPES as DTYPE_OF

Progress = Callable[[int, int], None]  # bytes done, bytes in all

PIECE = 1 << 20  # numbers read at a time: 2 MB of bf16 stay in the core's cache until they are widened
COPIED_PIECE = 1 << 25  # numbers copied at a time: nothing to compute, and Python's lock is asked for rarely
QUANTISED_PIECE = 1 << 18  # numbers quantised at a time: some ten arrays of 1 MB that stay in the core's cache, too
THREADS = min(8, os.cpu_count() or 1)  # page faults of the fresh result cost more than the reading, and run in parallel


class MappedFile:
    """A file whose bytes are arrays, and whether it still is the file that was opened.

    Reading a mapped page that no longer exists ends the process with SIGBUS, which Python cannot catch. A file that was
    replaced by renaming another one over it is harmless: the map keeps the old one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)
        self.state = self.now()
        self.bytes = mmap.mmap(self.number, 0, access=mmap.ACCESS_READ)
        self.address = np.frombuffer(self.bytes, np.uint8).ctypes.data

    def now(self) -> tuple[int, int]:
        stat = os.fstat(self.number)
        return stat.st_size, stat.st_mtime_ns

    def check_unchanged(self) -> None:
        size, written = self.now()
        if size < self.state[0]:
            raise ModelFilesError(
                f"{self.path}: was cut from {self.state[0]:,} to {size:,} bytes while in use; download it again"
            )
        if (size, written) != self.state:
            raise ModelFilesError(f"{self.path}: was changed while in use; start again to load it as it is now")

    def array(self, stored: Stored) -> np.ndarray:
        """The tensor as a read-only view of the file."""
        if stored.offset + stored.nbytes > self.state[0]:
            raise ModelFilesError(f"{self.path}: was cut while being opened; download it again")
        flat = np.frombuffer(self.bytes, DTYPES[stored.dtype], stored.size, stored.offset)
        return flat.reshape(stored.shape)

    def holds(self, array: np.ndarray) -> bool:
        """Whether that array is a part of the file."""
        return 0 <= array.ctypes.data - self.address < len(self.bytes)

    def read(self, array: np.ndarray, out: np.ndarray) -> None:
        """The bytes of a part of the file, by an ordinary read: no page of the map is touched."""
        offset, rest = array.ctypes.data - self.address, out.reshape(-1).view(np.uint8).data
        while rest:
            got = os.preadv(self.number, [rest], offset)
            if not got:
                raise ModelFilesError(f"{self.path}: was cut while being read; download it again")
            offset, rest = offset + got, rest[got:]

    def let_go(self, array: np.ndarray) -> None:
        """Give the pages of a part back to the system; they come again if they are touched again."""
        if self.holds(array) and hasattr(mmap, "MADV_DONTNEED"):
            first = -(-(array.ctypes.data - self.address) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (array.ctypes.data - self.address + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self.bytes.madvise(mmap.MADV_DONTNEED, first, last - first)


class Wanted(NamedTuple):
    """What a tensor is to become: a format of `tinyqwen.formats`, and its shape as a matrix or vector."""

    format: str
    shape: tuple[int, ...]


Tensor = np.ndarray | Quantised
Job = tuple[int, Callable[[], None]]  # how many bytes it reads, and what it does


def load(
    inventory: dict[str, Stored],
    wanted: dict[str, Wanted],
    progress: Progress | None = None,
    mapped: bool = True,
    packed: bool = False,
    later: bool = False,
) -> tuple[dict[str, Any], tuple[MappedFile, ...]]:
    """All wanted tensors, and the files that some are views of, if `mapped`. `packed`: those in bf16 become 12 bits,
    except, if that is done `later`, what can be mapped.

    All are read-only, mapped or not: weights are nobody's to change, and a kernel compiled for the one fits the other.
    Errors: ModelFilesError if a file cannot be read, or names the tensor that holds what cannot be quantised.
    """
    maps: dict[Path, MappedFile] = {}
    jobs: list[Job] = []
    packings: dict[str, Any] = {}
    pages = LargePages()

    def place(stored: Stored, dtype: np.dtype, alignment: int = 1) -> np.ndarray:
        """Mapped, or to be filled by jobs."""
        if mapped and can_map(stored, dtype, alignment):
            if stored.path not in maps:
                maps[stored.path] = MappedFile(stored.path)
            return maps[stored.path].array(stored)
        array = pages.empty(stored.shape, dtype)
        jobs.extend(reading(stored, array.reshape(-1)))
        return array

    tensors: dict[str, Any] = {}
    for name, (format, shape) in wanted.items():
        stored = inventory[name]
        if packed and format == "bf16" and can_pack(shape) and not (later and can_map(stored, DTYPE_OF[format])):
            packings[name] = start_packing(shape, pages.empty)
            jobs.extend(packing(stored, packings[name]))
        elif format not in BITS:
            tensors[name] = place(stored, DTYPE_OF[format])
        elif stored.dtype == "U8":
            values = place(stored, DTYPES["U8"], ALIGNMENT)
            scales = place(inventory[name + SCALE], DTYPES["BF16"], ALIGNMENT // 2)  # 16 scales side by side
            tensors[name] = Quantised(BITS[format], (shape[0], shape[1]), values, scales)
        else:
            tensors[name] = quantised = empty(BITS[format], (shape[0], shape[1]), pages.empty)
            jobs.extend(quantising(name, stored, quantised))
    run_all(jobs, progress)
    jobs.clear()  # which hold on to what they filled
    for name in list(packings):
        matrix = packings.pop(name).end()
        plain_bytes = matrix.size * DTYPE_OF["bf16"].itemsize  # numbers of all magnitudes are better left alone
        tensors[name] = matrix if matrix.nbytes < plain_bytes else matrix.astype(DTYPE_OF["bf16"])
    for tensor in tensors.values():
        for array in parts_of(tensor):
            array.flags.writeable = False
    return tensors, tuple(maps.values())


def parts_of(tensor: Tensor | Packed) -> tuple[np.ndarray, ...]:
    """The arrays that a tensor consists of."""
    if isinstance(tensor, Quantised):
        return tensor.values, tensor.scales
    return tensor.parts if isinstance(tensor, Packed) else (tensor,)


def can_map(stored: Stored, dtype: np.dtype, alignment: int = 1) -> bool:
    """Whether the file's bytes can serve as the array: right type, and numbers at multiples of their size."""
    return DTYPES[stored.dtype] == dtype and stored.offset % max(alignment, dtype.itemsize) == 0


def reading(stored: Stored, out: np.ndarray) -> Iterator[Job]:
    """The jobs that fill an array with a tensor's numbers, rounded to nearest or widened to its type."""
    as_it_is = DTYPES[stored.dtype] == out.dtype
    for start, stop in pieces(stored.size, COPIED_PIECE if as_it_is else PIECE):
        nbytes = (stop - start) * DTYPES[stored.dtype].itemsize
        yield nbytes, partial(read_numbers, stored, start, stop, out[start:stop])


def quantising(name: str, stored: Stored, out: Quantised) -> Iterator[Job]:
    """The jobs that fill a quantised matrix, some rows each."""
    O, I = out.shape  # noqa: E741

    def job(start: int, stop: int) -> None:
        rows_NI = np.empty((stop - start, I), np.float32)
        read_numbers(stored, start * I, stop * I, rows_NI.reshape(-1))
        try:
            quantise(rows_NI, out.bits, out.tiles(start, stop))
        except ValueError as error:
            raise ModelFilesError(
                f"{stored.path}: {name} cannot be quantised: {error}; load it with --dtype bf16, or download it again"
            ) from None

    for start, stop in pieces_of_rows(O, I):
        yield (stop - start) * I * DTYPES[stored.dtype].itemsize, partial(job, start, stop)


def start_packing(shape: tuple[int, ...], room: Callable) -> Any:
    from backends.cpu.packing import Packing  # Numba takes half a second, which a plan or a copy need not wait for

    return Packing(shape, room)


def packing(stored: Stored, out: Any) -> Iterator[Job]:
    """The jobs that fill a packed matrix, some rows each."""
    O, I = out.shape  # noqa: E741

    def job(start: int, stop: int) -> None:
        rows_NI = np.empty((stop - start, I), DTYPE_OF["bf16"])
        read_numbers(stored, start * I, stop * I, rows_NI.reshape(-1))
        out.add(start, rows_NI)

    for start, stop in pieces(O, max(1, PIECE // I)):
        yield (stop - start) * I * DTYPES[stored.dtype].itemsize, partial(job, start, stop)


def run_all(jobs: list[Job], progress: Progress | None = None) -> None:
    """Run the jobs on a few threads: NumPy and the file system let them work at the same time."""
    total, done = sum(nbytes for nbytes, _ in jobs), 0
    threads = ThreadPoolExecutor(THREADS)
    try:
        for (nbytes, _), _ in zip(jobs, threads.map(lambda job: job[1](), jobs)):
            done += nbytes
            if progress:
                progress(done, total)
    finally:
        threads.shutdown(cancel_futures=True)  # after Ctrl-C, nobody waits for the rest of the file


def pieces(count: int, size: int = PIECE) -> Iterator[tuple[int, int]]:
    """
    >>> list(pieces(7, 3))
    [(0, 3), (3, 6), (6, 7)]
    """
    for start in range(0, count, size):
        yield start, min(start + size, count)


def pieces_of_rows(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """
    >>> list(pieces_of_rows(300, 2048))
    [(0, 128), (128, 256), (256, 300)]
    """
    step = max(1, QUANTISED_PIECE // (ROWS * columns)) * ROWS
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def read_numbers(stored: Stored, start: int, stop: int, out: np.ndarray) -> None:
    """Read numbers start to stop of that tensor, in the type of `out`: widened, or rounded to nearest, ties to even."""
    kind = DTYPES[stored.dtype]
    raw = out if out.dtype == kind else np.empty(stop - start, kind)
    rest = raw.view(np.uint8).data
    try:
        with open(stored.path, "rb", buffering=0) as file:
            file.seek(stored.offset + start * kind.itemsize)
            while rest:
                got = file.readinto(rest)
                if not got:
                    raise ModelFilesError(f"{stored.path}: was cut while being read; download it again")
                rest = rest[got:]
    except OSError as error:
        raise ModelFilesError(f"{stored.path}: cannot be read ({error.strerror}); check the disk") from None
    if raw is out:
        return
    with np.errstate(invalid="ignore"):  # a signalling NaN in float16 becomes a quiet one, and needs no warning
        out[...] = raw


def same_values(first: Stored, second: Stored) -> bool:
    """Whether two stored tensors hold the same numbers, whatever their types. Reads both, keeps neither."""
    if first.shape != second.shape:
        return False
    for start, stop in pieces(first.size):
        one, other = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
        read_numbers(first, start, stop, one)
        read_numbers(second, start, stop, other)
        if not np.array_equal(one.view(np.uint32), other.view(np.uint32)):
            return False
    return True
