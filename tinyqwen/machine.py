"""What this machine can do at best: measured, never taken from a datasheet.

Two numbers bound every operation. It cannot move its bytes faster than the memory delivers them, and it cannot do its
arithmetic faster than the largest matrix product does. Which of the two takes longer is what "bound" means.

    floor = max( bytes / read bandwidth, FLOPs / matrix peak )
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from backends.interface import Backend, Cost, Operation, shape_only


class Machine(NamedTuple):
    """The limits that times are compared with.

    bytes_per_second   reading memory
    flops_per_second   matrix products
    """

    name: str
    bytes_per_second: float
    flops_per_second: float

    def floor(self, cost: Cost) -> float:
        """The least seconds that an operation of this cost can take.

        >>> Machine("toy", 1e9, 1e12).floor(Cost(None, flops=10**9, read=5 * 10**6, written=0))
        0.005
        """
        return max((cost.read + cost.written) / self.bytes_per_second, cost.flops / self.flops_per_second)

    def bound(self, cost: Cost) -> str:
        """Which limit it is: memory or compute.

        >>> Machine("toy", 1e9, 1e12).bound(Cost(None, flops=10**9, read=5 * 10**6, written=0))
        'memory'
        """
        memory = (cost.read + cost.written) / self.bytes_per_second
        return "memory" if memory >= cost.flops / self.flops_per_second else "compute"


def measure(megabytes: int = 256, size: int = 1536, rounds: int = 5) -> Machine:
    """This machine's limits, in about two seconds: the best of some rounds, since noise only ever slows down.

    Reading: all cores read an array far larger than the caches, as a sum and as a matrix-vector product.
    Arithmetic: float32 matrix products of that size, which stay in the caches.
    """
    cores = os.cpu_count() or 1
    big = np.ones((megabytes * 2**20 // 4096, 1024), np.float32)
    vector = np.ones((1, 1024), np.float32)
    parts = np.array_split(big, cores)
    with ThreadPoolExecutor(cores) as pool:
        read = min(
            best(rounds, lambda: list(pool.map(np.sum, parts))),
            best(rounds, lambda: vector @ big.T),
        )
    square = np.ones((size, size), np.float32)
    return Machine("this machine", big.nbytes / read, 2 * size**3 / best(rounds, lambda: square @ square))


def best(rounds: int, work: Callable) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def limits_of(backend: Any) -> Machine:
    """The limits of what that backend runs on: this machine, or its GPU (products in bfloat16, as in a prompt)."""
    if backend.name != "cuda":
        return measure()
    from backends.cuda.ceilings import product_peak, read_bandwidth

    device = backend.at(0)
    return Machine("this GPU", read_bandwidth(device), product_peak(device))


def seconds_per_span(count: int = 300, backend: Backend | None = None) -> float:
    """What one record of the tracer costs on that backend, measured on an operation that does nothing."""
    from backends.tracing import Tracing

    nothing = Operation(lambda backend, x: x)
    nothing.name = "nothing"
    nothing.cost(lambda x: Cost(shape_only(x.shape), 0, 0, 0))
    plain = backend or Backend()
    x = plain.empty((1, 8))

    def run(backend) -> float:
        start = time.perf_counter()
        for _ in range(count):
            nothing(backend, x)
        return (time.perf_counter() - start) / count

    return max(0.0, statistics.median(run(Tracing(plain, {})) - run(plain) for _ in range(9)))
