"""What this device can do at best, measured: bytes read a second, and FLOPs a second of a matrix product.

Never of zeros: fewer wires change, the clock stays higher, and on an H200 a product of zeros was seen to run 13 %
faster than one of random numbers, which is what a model is made of.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from backends.cuda.arrays import BFLOAT16
from backends.cuda.cublas import product


def read_bandwidth(backend, nbytes: int = 2 << 30, rounds: int = 20) -> float:
    """Bytes a second of reading alone, from memory far larger than the caches."""
    backend.enter()
    xp = backend.xp
    data, out = xp.arange(nbytes // 4, dtype=np.uint32), xp.zeros(1, np.uint32)
    arguments = data, np.uint64(nbytes // 16), np.uint32(0xC0FFEE), out
    blocks = max(1, min(132 * 16, nbytes // (16 * 256)))
    return nbytes / seconds(backend, lambda: backend.launch("read_kernel", blocks, 256, arguments), rounds)


def product_peak(backend, size: int = 8192, rounds: int = 10) -> float:
    """FLOPs a second of a square product, bfloat16 in and float32 sums, by the library that prompts use."""
    backend.enter()
    xp = backend.xp
    some = np.random.default_rng(0).standard_normal((min(size, 128), size), dtype=np.float32).astype(BFLOAT16)
    x_NN, out_NN, block = xp.empty((size, size), BFLOAT16), xp.empty((size, size), np.float32), xp.asarray(some)
    for row in range(0, size, len(some)):
        x_NN[row : row + len(some)] = block
    return 2 * size**3 / seconds(backend, lambda: product(xp, x_NN, x_NN, out_NN), rounds)


def seconds(backend, work: Callable[[], object], rounds: int) -> float:
    """Of one of many that run one behind the other; the host waits at the end only."""
    backend.enter()
    for _ in range(2):
        work()
    backend.stream.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    backend.stream.synchronize()
    return (time.perf_counter() - start) / rounds
