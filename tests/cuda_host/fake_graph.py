"""Streams, graphs and memory pools of the stand-in for CuPy.

A capture runs everything, as it needs the shapes, remembers it, and at its end undoes every write: on a GPU, nothing
has happened until the graph is launched. What it made holds garbage until then. `Graph.launch` does it all again, on
the same memory.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np


class CaptureError(RuntimeError):
    """What CUDA refuses while a stream is captured."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class Owner:
    """Stands for a piece of device memory; alive as long as some array refers to it.

    written   in which stream that was last, and as which piece of its work
    """

    def __init__(self, pool, memory: np.ndarray, written: tuple[Stream, int]):
        self.pool, self.memory, self.written = pool, memory, written


class MemoryPool:
    """Memory is given back when its owner goes. One that a graph was captured with belongs to the graph."""

    def __init__(self):
        self.captured = False

    def malloc(self, nbytes):
        return nbytes

    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        """Nothing is held back here."""


class Capture:
    """What has been captured so far."""

    def __init__(self, pool):
        self.pool = pool
        self.actions: list = []
        self.before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.others: set = set()  # weak references to memory that is not the graph's own
        self.made: list[np.ndarray] = []

    def before_writing(self, memory: np.ndarray) -> None:
        """Note what is in memory that is about to be written."""
        base = memory
        while isinstance(base.base, np.ndarray):
            base = base.base
        self.before.setdefault(id(base), (base, base.copy()))

    def add(self, action, owners) -> None:
        """Note something to be done again, and whose memory it touches."""
        self.actions.append(action)
        for owner in owners:
            if owner.pool is self.pool:
                self.made.append(owner.memory)
            else:
                self.others.add(weakref.ref(owner))

    def end(self) -> None:
        for base, values in self.before.values():
            np.copyto(base, values)
        for memory in self.made:
            if memory.flags.writeable:
                spoil(memory)


def spoil(memory: np.ndarray) -> None:
    """NaN, or numbers that are no index of anything."""
    memory[...] = np.nan if memory.dtype.kind == "f" or memory.dtype.kind == "V" else memory.dtype.type(1)


class Graph:
    def __init__(self, capture: Capture, cuda: Cuda):
        self.capture, self.cuda, self.launches = capture, cuda, 0

    def launch(self, stream=None) -> None:
        if any(owner() is None for owner in self.capture.others):
            raise RuntimeError("the graph's replay touches memory that has been given back")
        self.launches += 1
        with np.errstate(all="ignore"):
            for action in self.capture.actions:
                action()

    def upload(self, stream=None) -> None:
        """Nothing to do here."""


class Event:
    def __init__(self, stream):
        self.stream, self.count = stream, len(stream.later)
        self.behind = {**stream.behind, stream: stream.count}

    def synchronize(self) -> None:
        self.stream.device.wait("Event.synchronize")
        self.stream.deliver(self.count)
        self.stream.device.cuda.host_saw(self.behind)


class Stream:
    """Work happens at once; only copies to the host that need not block wait until somebody waits for them.

    On a GPU, what another stream does happens whenever it likes, so using memory that it writes is refused until
    somebody has waited: this stream for an event, or the host.

    count    pieces of work so far
    behind   how many pieces of other streams' work are done before this one's next
    """

    def __init__(self, device, non_blocking):
        self.device, self.non_blocking = device, non_blocking
        self.count = 0
        self.behind: dict[Stream, int] = {}
        self.later: list = []
        self.delivered = 0

    def writes(self) -> tuple[Stream, int]:
        """Another piece of work, which writes some memory."""
        self.count += 1
        return self, self.count

    def uses(self, owner: Owner) -> None:
        stream, count = owner.written
        if stream is not self and count > max(self.behind.get(stream, 0), self.device.cuda.seen.get(stream, 0)):
            raise RuntimeError("another stream writes this memory, and nobody has waited for it")

    def use(self):
        self.device.cuda.current = self
        return self

    def wait_event(self, event: Event) -> None:
        later(self.behind, event.behind)

    def record(self) -> Event:
        return Event(self)

    def synchronize(self) -> None:
        self.device.wait("Stream.synchronize")
        self.deliver(len(self.later))
        self.device.cuda.host_saw({**self.behind, self: self.count})

    def deliver(self, count: int) -> None:
        for values, out in self.later[self.delivered : count]:
            np.copyto(out, values)
        self.delivered = max(self.delivered, count)

    def begin_capture(self) -> None:
        cuda = self.device.cuda
        if not self.non_blocking or cuda.current is not self:
            raise CaptureError("cannot capture on a stream that is the default one, or not the current one")
        if cuda.pool is cuda.common_pool:
            raise CaptureError("memory of the common pool would be given to others after the capture")
        cuda.pool.captured = True
        self.device.capture = Capture(cuda.pool)

    def end_capture(self) -> Graph:
        capture, self.device.capture = self.device.capture, None
        capture.end()
        return Graph(capture, self.device.cuda)

    def is_capturing(self) -> bool:
        return self.device.capture is not None


def later(known: dict[Stream, int], news: dict[Stream, int]) -> None:
    """Of each stream the later point."""
    for stream, count in news.items():
        known[stream] = max(known.get(stream, 0), count)


class Cuda:
    """`cupy.cuda`. As there, each thread has a current stream, and begins with the default one."""

    MemoryPool, OutOfMemoryError = MemoryPool, OutOfMemoryError

    def __init__(self, device, memory: int):
        self.device, self.memory, self.free = device, memory, memory
        self.common_pool = self.pool = MemoryPool()
        self.default, self.seen, self._threads = Stream(device, False), {}, threading.local()
        self.owners: weakref.WeakSet = weakref.WeakSet()
        self.runtime = SimpleNamespace(memGetInfo=lambda: (self.free, self.memory), getDeviceCount=lambda: 1)

    current = property(
        lambda self: getattr(self._threads, "stream", self.default),
        lambda self, stream: setattr(self._threads, "stream", stream),
    )

    def get_current_stream(self) -> Stream:
        return self.current

    def host_saw(self, behind: dict[Stream, int]) -> None:
        """The host has waited until that much of each stream was done."""
        later(self.seen, behind)

    def is_available(self) -> bool:
        return True

    def Stream(self, non_blocking=False) -> Stream:
        return Stream(self.device, non_blocking)

    def alloc_pinned_memory(self, nbytes: int) -> bytearray:
        self.device.refuse_in_capture("taking pinned memory")
        return bytearray(nbytes)

    @contextmanager
    def using_allocator(self, allocator):
        before, self.pool = self.pool, allocator.__self__
        try:
            yield
        finally:
            self.pool = before

    def take(self, memory: np.ndarray) -> Owner:
        """The owner of memory for a new array, of the current pool."""
        nbytes = memory.nbytes
        if self.pool.captured and not self.device.capture:
            raise RuntimeError("this pool's memory is a graph's: whoever takes of it now is overwritten by a replay")
        if self.device.capture and self.pool is self.common_pool:
            raise CaptureError("memory of the common pool while a graph is captured")
        if nbytes > self.free:
            raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes")
        owner = Owner(self.pool, memory, self.current.writes())
        self.owners.add(owner)
        self.free -= nbytes
        weakref.finalize(owner, self.give_back, nbytes)
        return owner

    def give_back(self, nbytes: int) -> None:
        self.free += nbytes

    def owner_of(self, address: int) -> Owner:
        """Whose memory an address is in; kernels are given addresses of views with gaps."""
        for owner in self.owners:
            if 0 <= address - owner.memory.ctypes.data < owner.memory.nbytes:
                return owner
        raise ValueError(f"address {address:#x} is in nobody's memory")

    def copy_later(self, memory: np.ndarray, out: np.ndarray, stream: Stream) -> np.ndarray:
        """A copy to the host that arrives when somebody waits."""
        self.device.refuse_in_capture("copying to the host")
        if stream is None or out is None:
            raise TypeError("a copy that does not block needs a stream, and memory to go to")
        stream.later.append((memory.copy(), out))
        return out
