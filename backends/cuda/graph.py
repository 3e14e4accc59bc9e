"""One graph for many launches: recorded once, replayed as a whole.

A step of the 0.5B is some 200 kernels of 1 to 5 us each, and Python needs longer than that to launch one. A graph is
launched at once: the device walks from kernel to kernel by itself (0.8 to 1.3 us from one to the next).

What is recorded is launches with their arguments as they were: the same addresses and the same numbers each time. So
whatever changes from replay to replay (token, position, dice) must lie in device memory, and be read there. Nothing
may wait for the device, or be copied from the host, in between; whoever tries gets an error from CUDA.

Memory that is taken while recording belongs to the graph for as long as it lives: it has a pool of its own, or the
common pool would give it to others in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Recording:
    """A recorded function. `replay()` does again what it did to the same memory; `out` is what it returned."""

    def __init__(self, graph: Any, pool: Any, out: Any, stream: Any):
        self.graph, self.pool, self.out, self.stream = graph, pool, out, stream

    def replay(self) -> None:
        self.graph.launch(stream=self.stream)


def record(backend, function: Callable[[], Any]) -> Recording:
    """Run a function once, so that its kernels are compiled and their tables made; then record it.

    The first run happens, the recording does not: until a replay, what it returned holds garbage.
    """
    xp, stream = backend.xp, backend.stream
    function()
    pool = xp.cuda.MemoryPool()
    with xp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            out = function()
        except BaseException:
            with suppress(Exception):  # a capture that went wrong cannot be ended well
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return Recording(graph, pool, out, stream)
