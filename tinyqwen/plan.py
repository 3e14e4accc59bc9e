"""A plan: what a model will need and how fast it can be, before a byte of it is downloaded.

The unchanged model runs on shapes alone (`backends.meta`). Memory is then counted and not estimated: weights from their
shapes, the cache from its own code, intermediate results from what the readable path holds at one time (faster backends
hold less: they never keep a whole chunk's scores). Time is a floor: each operation's bytes over the bandwidth or FLOPs
over the peak, whichever is longer. Real machines are slower, never faster.

Weight formats: f32 and bf16 as they are; int8 and int4 in groups of 32 along the input, a 2-byte scale for each group;
vectors (norms, biases) stay bf16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from backends import Meta, shape_only
from backends.interface import Cost
from backends.tracing import Span, Tracing
from tinyqwen.config import Config
from tinyqwen.generate import CHUNK
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.trace.machine import Machine
from tinyqwen.trace.record import closed
from tinyqwen.weights import fill, names_of, tensor_shapes, tree

FORMATS = ("f32", "bf16", "int8", "int4")
BYTES = {"f32": 4, "bf16": 2}
GROUP = 32


def tensor_bytes(shape: tuple[int, ...], format: str) -> int:
    """Bytes of a tensor in that format.

    >>> [tensor_bytes((10, 64), format) for format in FORMATS], tensor_bytes((64,), "int4")
    ([2560, 1280, 680, 360], 128)
    """
    if format in BYTES or len(shape) == 1:
        return math.prod(shape) * BYTES.get(format, 2)
    rows, columns = shape
    values = columns if format == "int8" else math.ceil(columns / 2)
    return rows * (values + 2 * math.ceil(columns / GROUP))


def weight_bytes(config: Config, format: str) -> int:
    """Bytes of all weights, as they lie in memory or in a checkpoint.

    >>> from tinyqwen.sizes import SIZES
    >>> weight_bytes(SIZES["0.5B"].config(), "bf16")
    988065536
    """
    return sum(tensor_bytes(shape, format) for shape in tensor_shapes(config).values())


class Memory(NamedTuple):
    """Bytes that a model needs at that context.

    weights       all of them
    kv_cache      for one sequence of that length, as allocated (room for tokens grows by doubling)
    activations   the most that intermediate results take at one time, reading a chunk at the end of the context
    """

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


class Work(NamedTuple):
    """One call of the model: every operation that counts, and how many tokens went through."""

    tokens: int
    spans: list[Span]

    @property
    def flops(self) -> int:
        return sum(span.cost.flops for span in self.spans if span.cost)

    def moved(self, scale: float = 1.0, kv_scale: float = 1.0) -> float:
        """Bytes read and written, where weights and cache are stored smaller than in float32 by those factors."""
        return sum(sum(bytes_of(span, scale, kv_scale)) for span in self.spans)

    def floor(self, machine: Machine, scale: float = 1.0, kv_scale: float = 1.0) -> float:
        """The least seconds on that machine."""
        return sum(
            machine.floor(Cost(None, span.cost.flops, *map(int, bytes_of(span, scale, kv_scale))))
            for span in self.spans
            if span.cost
        )


def bytes_of(span: Span, scale: float, kv_scale: float) -> tuple[float, float]:
    """What an operation reads and writes when weights and cache are smaller than float32 by those factors."""
    if span.cost is None:
        return 0.0, 0.0
    if span.operation == "experts":  # the experts are a list of trees: what is read beside them is small
        return span.cost.read * scale, span.cost.written
    read = span.cost.read - span.weights * (1 - scale)
    if span.operation == "attention":  # queries are as much as what is written; the rest is the cache
        read = span.cost.written + (span.cost.read - span.cost.written) * kv_scale
    return read, span.cost.written * (kv_scale if span.operation == "update_cache" else 1)


class Plan:
    """A model at a context, on shapes alone.

    >>> from tinyqwen.sizes import SIZES
    >>> plan = Plan(SIZES["72B"].config(), context=32768)
    >>> memory = plan.memory("int4", "bf16")
    >>> f"{memory.weights / 1e9:.1f} GB of weights, {memory.kv_cache / 1e9:.1f} GB of cache"
    '40.9 GB of weights, 10.7 GB of cache'
    """

    def __init__(self, config: Config, context: int):
        self.config, self.context = config, context
        self.weights = tree(fill(config, lambda name, shape: shape_only(shape)))

    def memory(self, format: str = "f32", kv: str = "f32") -> Memory:
        """What it needs in these formats of weights and cache; intermediate results are float32."""
        chunk = min(CHUNK, self.context)
        meta = Meta(opened=frozenset({"attention"}))  # the scores inside it are the largest result of all
        cache = self.filled_cache(meta, self.context - chunk)
        forward(meta, self.config, self.weights, make_step([([0] * chunk, cache)]))
        return Memory(weight_bytes(self.config, format), cache.nbytes * BYTES[kv] // 4, meta.peak_bytes)

    def decode(self, depth: int | None = None) -> Work:
        """The work of one token behind `depth` cached ones (default: the context's last token)."""
        return self.work(1, self.context - 1 if depth is None else depth)

    def prefill(self) -> Work:
        """The work of reading a prompt that fills the context, all at once."""
        return self.work(self.context, 0)

    def work(self, tokens: int, depth: int) -> Work:
        meta = Meta()
        tracing = Tracing(meta, names_of(self.weights))
        step = make_step([([0] * tokens, self.filled_cache(meta, depth))])
        forward(tracing, self.config, self.weights, step)
        return Work(tokens, closed(tracing.spans))

    def filled_cache(self, meta: Meta, length: int) -> KVCache:
        cache = KVCache(meta, self.config)
        cache.reserve(self.context)
        cache.length = length
        return cache
