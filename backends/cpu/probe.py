"""What this machine can do at best, measured with the kernels' own instructions: ceilings that no kernel can pass.

read_bandwidth     bytes a second from memory: all threads do nothing but read an array far larger than the caches
product_peak       FLOPs a second: multiply-adds on numbers that never leave the registers and the nearest cache
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from backends.cpu.compiling import inner
from backends.cpu.simd import fill_i32, load, store, sum_of, zeros
from backends.cpu.team import shared, use
from backends.cpu.tiles import outer_bf16, outer_f32, outer_u8_i8, tile

PART = 1 << 16  # numbers that a thread reads at a time: 256 KB


def read_bandwidth(threads: int, megabytes: int = 512, rounds: int = 7) -> list[float]:
    """Bytes a second of so many threads that read, one figure a round; the array is larger than any cache.

    >>> min(read_bandwidth(1, megabytes=1, rounds=2)) > 0
    True
    """
    numbers = np.ones(max(1, megabytes * 2**20 // 4 // PART) * PART, np.float32)
    sums = np.empty(len(numbers) // PART, np.float32)
    return [
        numbers.nbytes / seconds for seconds in timed(threads, rounds, lambda: read_parts(len(sums), numbers, sums))
    ]


@shared
@inner
def read_parts(first, last, numbers, sums):
    for part in range(first, last):
        a, b, c, d = zeros(), zeros(), zeros(), zeros()
        for n in range(part * PART, (part + 1) * PART, 64):
            a, b = a + load(numbers, n), b + load(numbers, n + 16)
            c, d = c + load(numbers, n + 32), d + load(numbers, n + 48)
        sums[part] = sum_of((a + b) + (c + d))


def product_peak(threads: int, format: str = "f32", rounds: int = 7) -> list[float]:
    """FLOPs a second of so many threads that multiply and add, one figure a round.

    format   f32 anywhere; bf16 and int8 (a byte times a byte) with the features of `features.py`

    >>> min(product_peak(1, rounds=2)) > 0
    True
    """
    multiply, dtype, pairs = {
        "f32": (multiply_f32, np.float32, 1),
        "bf16": (multiply_bf16, np.int32, 2),
        "int8": (multiply_int8, np.int32, 4),
    }[format]
    columns = np.zeros((256, 16), dtype)
    out = np.zeros((threads * 4, 16), np.int32 if format == "int8" else np.float32)
    repeats = 400
    flops = len(out) * repeats * len(columns) * 16 * 16 * 2 * pairs
    return [flops / seconds for seconds in timed(threads, rounds, lambda: multiply(len(out), columns, repeats, out))]


@shared
@inner
def multiply_f32(first, last, columns, repeats, out):
    for part in range(first, last):
        sums = tile(16, zeros())
        for _ in range(repeats):
            for k in range(columns.shape[0]):
                sums = outer_f32(sums, load(columns, (k, 0)), columns, (0, k % 16))
        keep(sums, out, part)


@shared
@inner
def multiply_bf16(first, last, columns, repeats, out):
    for part in range(first, last):
        sums = tile(16, zeros())
        for _ in range(repeats):
            for k in range(columns.shape[0]):
                sums = outer_bf16(sums, load(columns, (k, 0)), columns, (0, k % 16))
        keep(sums, out, part)


@shared
@inner
def multiply_int8(first, last, columns, repeats, out):
    for part in range(first, last):
        sums = tile(16, fill_i32(np.int32(0)))
        for _ in range(repeats):
            for k in range(columns.shape[0]):
                sums = outer_u8_i8(sums, load(columns, (k, 0)), columns, (0, k % 16))
        keep(sums, out, part)


@inner
def keep(sums, out, part):
    """Use the result, or the compiler would see that nobody does and leave all of it out."""
    total = sums[0]
    for n in range(1, 16):
        total = total + sums[n]
    store(out, (part, 0), total)


def timed(threads: int, rounds: int, work: Callable[[], None]) -> list[float]:
    """Seconds of each round, after one that compiles and warms up."""
    use(threads)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
