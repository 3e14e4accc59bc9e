"""Weights to a device: the next piece is read from the file while the one before flies.

    file (mapped) --read--> pinned memory --copy--> device

A device copies only from memory that the system has promised not to move (pinned). Two such buffers are enough: one is
filled by a thread here while the device empties the other. Nothing else is held: a model larger than the machine's
memory can be loaded, if the device has room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from backends.quantised import Quantised
from tinyqwen.weights import Node, walk

PIECE = 32 << 20  # bytes
Progress = Callable[[int, int], None]


def upload(backend: Any, weights: Node, keep: Callable[[str], bool] = lambda path: False, progress=None) -> Node:
    """The same tree with its arrays on the backend's device.

    keep       which paths stay where they are
    progress   called with bytes done and bytes in all

    Errors: MemoryError if the device has no room; ask `bytes_to_move` before.
    """
    backend.enter()
    moving = list(arrays_of(weights, keep))
    total, done = sum(array.nbytes for array in moving), 0
    there = {id(array): backend.xp.empty(array.nbytes, np.uint8) for array in moving}
    with ThreadPoolExecutor(1) as beside:
        buffers = [pinned(backend.xp, min(PIECE, max(1, total))) for _ in range(2)]
        copied: list = [None, None]  # when the device has emptied each of them
        jobs = [(array, start) for array in moving for start in range(0, array.nbytes, PIECE)]
        reading = beside.submit(fill, buffers[0], *jobs[0], None) if jobs else None
        for n, (array, start) in enumerate(jobs):
            assert reading is not None
            piece = reading.result()
            if n + 1 < len(jobs):
                other = (n + 1) % 2
                reading = beside.submit(fill, buffers[other], *jobs[n + 1], copied[other])
            there[id(array)][start : start + len(piece)].set(piece, stream=backend.stream)
            copied[n % 2] = backend.stream.record()
            done += len(piece)
            if progress:
                progress(done, total)
        backend.stream.synchronize()

    def placed(array):
        return there[id(array)].view(array.dtype).reshape(array.shape)

    return rebuilt(weights, keep, placed)


def fill(buffer: np.ndarray, array: np.ndarray, start: int, emptied: Any) -> np.ndarray:
    """The next bytes of an array in the buffer, once the device has taken what was in it."""
    if emptied is not None:
        emptied.synchronize()
    piece = buffer[: min(PIECE, array.nbytes - start)]
    piece[...] = array.reshape(-1).view(np.uint8)[start : start + len(piece)]
    return piece


def pinned(xp: Any, nbytes: int) -> np.ndarray:
    return np.frombuffer(xp.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)


def bytes_to_move(weights: Node, keep: Callable[[str], bool] = lambda path: False) -> int:
    return sum(array.nbytes for array in arrays_of(weights, keep))


def arrays_of(weights: Node, keep: Callable[[str], bool]) -> Iterator[np.ndarray]:
    """Each array of the tree once, the parts of quantised matrices too."""
    for path, place in walk(weights):
        if not isinstance(place, Node) and not keep(path):
            yield from (place.values, place.scales) if isinstance(place, Quantised) else (place,)


def rebuilt(place: Any, keep: Callable[[str], bool], placed: Callable, path: str = "") -> Any:
    """The tree again, each array changed. A tied head stays the embedding under a second name."""
    if isinstance(place, list):
        return [rebuilt(item, keep, placed, f"{path}.{index}") for index, item in enumerate(place)]
    if isinstance(place, Node):
        branches = vars(place)
        tied = branches.get("lm_head") is not None and branches["lm_head"] is branches.get("embed_tokens")
        node = Node(**{
            name: rebuilt(branch, keep, placed, f"{path}.{name}".lstrip("."))
            for name, branch in branches.items()
            if not (tied and name == "lm_head")
        })  # fmt: skip
        if tied:
            node.lm_head = node.embed_tokens
        return node
    if keep(path):
        return place
    if isinstance(place, Quantised):
        return Quantised(place.bits, place.shape, placed(place.values), placed(place.scales))
    return placed(place)
