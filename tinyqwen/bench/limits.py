"""What this machine can do at best, and so what the model can: the ceilings that measurements are compared with.

    decode    cannot be faster than weights and cache come out of memory
    prefill   cannot be faster than its FLOPs at the peak of a matrix product

Bytes and FLOPs are those of the operations' costs, added up while the unchanged model runs on shapes alone. As bytes
count only weights, keys and values: all else is small enough to stay in the processor's caches, so this is a bound.
"""

from __future__ import annotations

from typing import NamedTuple

from backends.meta import Meta
from backends.tracing import Tracing, closed
from tinyqwen.config import Config
from tinyqwen.formats import shape_weights
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import names_of

KV_BYTES = {"f32": 4, "bf16": 2, "int8": 1}  # of a number in the cache; int8's scales are left out of a lower bound


class Limits(NamedTuple):
    """What was measured.

    read    bytes per second: all threads read an array far larger than the caches
    peaks   FLOPs per second of multiply-adds that never leave the registers, by weight format
    """

    read: float
    peaks: dict[str, float]


def measure(threads: int) -> Limits:
    """This machine's limits, with the cpu backend's own instructions: the best of some rounds, as noise slows down."""
    from backends.cpu import probe
    from backends.cpu.features import detected

    peaks = {"f32": max(probe.product_peak(threads, "f32", rounds=3))}
    for dtype, feature in (("bf16", "bf16"), ("int8", "vnni")):
        peaks[dtype] = max(probe.product_peak(threads, dtype, rounds=3)) if feature in detected() else peaks["f32"]
    peaks["int4"] = peaks["int8"]  # unpacked to bytes on the way
    return Limits(read_bandwidth(threads), peaks)


def read_bandwidth(threads: int) -> float:
    """Bytes per second: the best of three."""
    from backends.cpu import probe

    return max(probe.read_bandwidth(threads, rounds=3))


class Work(NamedTuple):
    """One call of the model.

    tokens    that come out: one a sequence when decoding, all of the prompt's when it is read
    weights   bytes of weights read
    kv        bytes of keys and values read and written
    flops     floating point operations
    """

    tokens: int
    weights: int
    kv: float
    flops: int

    def seconds(self, limits: Limits, dtype: str) -> float:
        """The least time: memory or arithmetic, whichever takes longer.

        >>> Work(1, 10**9, 0, 10**9).seconds(Limits(1e10, {"bf16": 1e12}), "bf16")
        0.1
        """
        return max((self.weights + self.kv) / limits.read, self.flops / limits.peaks[dtype])


def work(config: Config, dtype: str, kv: str, tokens: int, depth: int = 0, sequences: int = 1) -> Work:
    """What the model must do for so many tokens of each sequence, each having `depth` tokens in its cache already.

    >>> from tinyqwen.sizes import SIZES
    >>> one = work(SIZES["0.5B"].config(), "bf16", "bf16", 1, depth=1000)
    >>> round(one.weights / 1e6), round(one.kv / 1e6, 1), round(one.flops / 1e6)
    (988, 12.3, 1077)
    """
    backend, weights, caches = Meta(), shape_weights(config, dtype), []
    for _ in range(sequences):
        cache = KVCache(backend, config)
        cache.reserve(depth + tokens, step=tokens)
        cache.length = depth
        caches.append(cache)
    tracing = Tracing(backend, names_of(weights))
    forward(tracing, config, weights, make_step([([0] * tokens, cache) for cache in caches]))
    spans = closed(tracing.spans)
    per_token = KV_BYTES[kv] * config.kv_values_per_token
    read = cache.bytes_at(depth + tokens, tokens) / cache.bytes_per_token  # tokens; sliding windows hold fewer
    return Work(
        tokens * sequences,
        sum(span.weights for span in spans),
        per_token * sequences * (read + tokens),  # all that is seen is read once, the new ones are written, too
        sum(span.cost.flops for span in spans if span.cost),
    )
