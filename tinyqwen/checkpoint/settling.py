"""A checkpoint settles: weights move from their mapped file into large pages, while the model works already.

A copy in pages of 2 MB decodes faster than the mapped file (`large_pages.py`), and one of bfloat16 in 12 bits faster
still (`packed.py`), but making it takes a second or so that nobody should wait for. So a model starts on the mapped
file, and a thread puts copies in its place, array by array: who asks the tree for a weight gets the one or the other,
and both hold the same numbers. What has moved leaves the file's pages to the system at once, so memory holds the
weights once, and a few MB twice.

From the command to the first token of the 0.5B in bf16: 2.7 s packed before, 2.1 s packed meanwhile.

At last the thread draws a sketch of a large head (`backends/sketch.py`), in 0.05 to 0.2 s: decoding then reads half of
the head's bytes or less, and chooses the same tokens (`tinyqwen/shortlist.py`).

Whoever tells weights by their identity (a trace names them by it) waits for the end with `Checkpoint.settle`.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from backends.large_pages import LargePages
from backends.packed import BFLOAT16, Packed, can_pack
from backends.quantised import Quantised, stored_shapes
from backends.sketch import Sketch
from tinyqwen.checkpoint.loading import PIECE, MappedFile, Wanted, parts_of, pieces, start_packing
from tinyqwen.errors import ModelFilesError
from tinyqwen.memory import available_bytes
from tinyqwen.weights import Node

SMALL = 1 << 26  # bytes: below, a model is in the caches mostly


def worth_moving(maps: tuple[MappedFile, ...]) -> bool:
    """Whether there are large pages, these files are large, and a copy of all leaves as much memory free."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    size = sum(len(file.bytes) for file in maps)
    return size > SMALL and 2 * size <= (available_bytes() or 0)


def worth_packing(wanted: dict[str, Wanted]) -> bool:
    """Whether there is much in bf16, and memory for 12 bits of each 16 with some to spare: a mapped file needs none."""
    size = sum(2 * math.prod(shape) for format, shape in wanted.values() if format == "bf16")
    return size > SMALL and size * 5 // 6 <= (available_bytes() or 0)


def can_be_packed(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == BFLOAT16 and can_pack(array.shape)


def is_to_pack(array: Any, maps: tuple[MappedFile, ...]) -> bool:
    """Whether this is a mapped matrix in bf16 that can be packed."""
    return can_be_packed(array) and any(file.holds(array) for file in maps)


def worth_sketching(weights: Node, packed: bool) -> bool:
    """Whether a sketch of the head saves decoding at least a 25th of its bytes, and leaves as much memory free."""
    head, total = weights.lm_head.weight, sum(array.nbytes for _, _, array in places(weights))
    values, scales = stored_shapes(4, head.shape)
    size = math.prod(values) + 2 * math.prod(scales)
    read = head.nbytes * (3 / 4 if packed and can_be_packed(head) else 1)
    return total > SMALL and 25 * (read - size) > total and 2 * size <= (available_bytes() or 0)


class Settling(threading.Thread):
    """The thread for what can wait: it moves every mapped array of the tree, and draws a sketch of the head. It ends
    early if a file changes or memory is short.

    moves      whether arrays are to move at all
    packed     whether matrices in bf16 then become 12 bits a number
    sketches   whether to draw a sketch
    sketch     of the head, once it is drawn
    """

    def __init__(self, weights: Node, maps: tuple[MappedFile, ...], *, moves: bool, packed: bool, sketches: bool):
        super().__init__(daemon=True, name="settling")
        self.weights, self.maps, self.moves, self.packed, self.sketches = weights, maps, moves, packed, sketches
        self.sketch: Sketch | None = None

    def run(self) -> None:
        if self.moves:
            move(self.weights, self.maps, self.packed)
        if self.sketches:  # not before: it would bring the mapped head into memory, beside its copy
            self.sketch = sketch_of_head(self.weights, self.maps)


def sketch_of_head(weights: Node, maps: tuple[MappedFile, ...]) -> Sketch | None:
    """None if it cannot be had: decoding then reads the head itself."""
    from backends.cpu.sketching import drawn

    def unchanged() -> None:
        for file in maps:
            file.check_unchanged()

    try:
        return drawn(weights.lm_head.weight, LargePages().empty, unchanged)
    except (MemoryError, ModelFilesError):
        return None


def move(weights: Node, maps: tuple[MappedFile, ...], packed: bool) -> None:
    pages = LargePages()

    def moved(array: Any) -> Any:
        if isinstance(array, Packed):
            return array  # was packed while loading, or a moment ago, as a tied head's other name
        if isinstance(array, Quantised):
            return Quantised(array.bits, array.shape, moved(array.values), moved(array.scales))
        for file in maps:
            if file.holds(array):
                if packed and is_to_pack(array, maps):
                    matrix = packed_from(file, array, pages)
                    if matrix.nbytes < array.nbytes:  # numbers of all magnitudes are better left alone
                        return matrix
                copy = pages.empty(array.shape, array.dtype)
                file.read(array, copy)
                copy.flags.writeable = False
                return copy
        return array  # was made while loading

    try:
        for place, name, array in places(weights):
            copy = moved(array)
            for file in maps:
                file.check_unchanged()  # or the copy may be of two minds; the next step will say so
            setattr(place, name, copy)
            for part in parts_of(array):
                for file in maps:
                    file.let_go(part)
    except (OSError, MemoryError, ModelFilesError):
        return  # the mapped file serves as well


def packed_from(file: MappedFile, array: np.ndarray, pages: LargePages) -> Packed:
    """The matrix in 12 bits a number, from some MB at a time."""
    packing, rows = start_packing(array.shape, pages.empty), max(1, PIECE // array.shape[1])
    for start, stop in pieces(len(array), rows):
        some = np.empty((stop - start, array.shape[1]), BFLOAT16)
        file.read(array[start:stop], some)
        packing.add(start, some)
    return packing.end()


def places(node: Node) -> Iterator[tuple[Node, str, Any]]:
    """Every array of the tree: whose attribute it is, that attribute's name, and the array."""
    for name, value in list(vars(node).items()):
        for branch in value if isinstance(value, list) else [value]:
            if isinstance(branch, Node):
                yield from places(branch)
            else:
                yield node, name, branch
