"""A plan: what a model will need and how fast it can be, before a byte of it is downloaded.

The unchanged model runs on shapes alone (`backends.meta`). Memory is then counted and not estimated: weights from their
shapes, the cache from its own code, intermediate results from what the model holds at one time. Time is a floor: each
operation's bytes over the bandwidth or FLOPs over the peak, whichever is longer. Real machines are slower, not faster.

Weights are those of `tinyqwen.formats`, without their data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from backends.interface import Backend, Cost
from backends.meta import Meta
from backends.tracing import Span, Tracing, closed
from tinyqwen.blocks.rope import rope_tables
from tinyqwen.config import Config
from tinyqwen.formats import shape_weights
from tinyqwen.generate import CHUNK
from tinyqwen.kv_cache import KVCache
from tinyqwen.machine import Machine
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import Node, names_of, walk

BYTES = {"f32": 4, "bf16": 2}  # of a number, where weights and cache are kept alike
ROOMS = (8, 16, 24, 80)  # GB: the memories of graphics cards and laptops that people have
ATTENTION = frozenset({"attention", "attention_part", "dual_chunk_attention", "sliding_window_attention"})
OPENED = ATTENTION | {"route", "experts"}  # operations with a cost that have others inside


# ---- the model on shapes ----


class Planned(NamedTuple):
    """A step on shapes: its operations, and the most bytes that results took at one time."""

    spans: list[Span]
    peak_bytes: int


def on_shapes(config: Config, weights: Node, tokens: int, keys: int, *, opened=(), logits: bool = True) -> Planned:
    """The step in which that many tokens of one sequence pass, when so many keys are visible at the end of it.

    opened   operations to look into although they have a cost, such as those of OPENED
    logits   whether the last token's are wanted

    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> spans = on_shapes(config, shape_weights(config), 1, 1000).spans
    >>> [span.shape for span in spans if span.operation == "update_cache"]
    [(2, 1000, 4), (2, 1000, 4)]
    """
    backend = Meta(opened=frozenset(opened))
    cache = KVCache(backend, config)
    cache.reserve(keys, step=tokens)
    cache.length = keys - tokens
    tracing = Tracing(backend, names_of(weights))
    forward(tracing, config, weights, make_step([([0] * tokens, cache)], lengths=[keys + (not logits)]))
    return Planned(tracing.spans, backend.peak_bytes)


class Work(NamedTuple):
    """One call of the model: every operation that counts, and how many tokens went through."""

    tokens: int
    spans: list[Span]

    @property
    def flops(self) -> int:
        return sum(span.cost.flops for span in self.spans if span.cost)

    def moved(self, kv_scale: float = 1.0) -> float:
        """Bytes read and written, where the cache is stored smaller than in float32 by that factor."""
        return sum(sum(bytes_of(span, kv_scale)) for span in self.spans)

    def floor(self, machine: Machine, kv_scale: float = 1.0) -> float:
        """The least seconds on that machine."""
        return sum(
            machine.floor(Cost(None, span.cost.flops, *map(int, bytes_of(span, kv_scale))))
            for span in self.spans
            if span.cost
        )


def bytes_of(span: Span, kv_scale: float) -> tuple[float, float]:
    """What an operation reads and writes when the cache is smaller than float32 by that factor."""
    if span.cost is None:
        return 0.0, 0.0
    read: float = span.cost.read
    if span.operation in ATTENTION:  # queries are as much as what is written; the rest is the cache
        read = span.cost.written + (span.cost.read - span.cost.written) * kv_scale
    return read, span.cost.written * (kv_scale if span.operation == "update_cache" else 1)


def work(config: Config, weights: Node, tokens: int, keys: int) -> Work:
    """What the model must do for that many tokens, when so many keys are visible at the end.

    >>> from tinyqwen.sizes import SIZES
    >>> config = SIZES["0.5B"].config()
    >>> round(work(config, shape_weights(config), 1, 1).flops / 1e6)
    989
    """
    return Work(tokens, closed(on_shapes(config, weights, tokens, keys).spans))


# ---- memory ----


class Memory(NamedTuple):
    """Bytes that a model takes while it generates one sequence.

    weights       the parameters
    kv            the KV cache at that context, without room for more
    activations   the most that a step's results take together, attention's inside left out; float32
    logits        one row over the vocabulary; float32
    scores        what attention takes more, where its scores are stored (as the definition does); fast kernels do not
    windows       the part of `kv` that no longer grows with the context: sliding windows that are full
    """

    weights: int
    kv: int
    activations: int
    logits: int
    scores: int
    windows: int = 0

    @property
    def total(self) -> int:
        """Without `scores`."""
        return self.weights + self.kv + self.activations + self.logits

    def stored_in(self, itemsize: int) -> Memory:
        """The same with so many bytes a weight and a number in the cache (float32 has 4); the rest stays float32."""
        scaled = {name: getattr(self, name) * itemsize // 4 for name in ("weights", "kv", "windows")}
        return self._replace(**scaled)


def kv_bytes_per_token(config: Config, kv: str) -> int:
    """What a token takes in a cache of that format, asked of the cache itself.

    >>> from tinyqwen.sizes import SIZES
    >>> [kv_bytes_per_token(SIZES["0.5B"].config(), kv) for kv in ("f32", "bf16", "int8")]
    [24576, 12288, 6528]
    """
    return KVCache(Meta(), config, kv).bytes_per_token


def memory(
    config: Config, context: int, format: str = "f32", kv: str = "f32", *, tables: str = "int8", chunk: int = CHUNK
) -> Memory:
    """At the end of a prompt that fills the context and is read in chunks, with weights and cache in these formats.

    tables   the embedding's and the head's format when weights are int4

    >>> from tinyqwen.sizes import SIZES
    >>> one = memory(SIZES["0.5B"].config(), 32768)
    >>> one.kv // 2**20, one.stored_in(2).kv // 2**20                     # MiB: 24 KiB a token, and 12 in bf16
    (768, 384)
    """
    weights, tokens, cache = shape_weights(config, format, tables), min(chunk, context), KVCache(Meta(), config, kv)
    kv_bytes = cache.bytes_at(context, tokens)
    growth = cache.bytes_at(context + 1, tokens) - kv_bytes
    plain = on_shapes(config, weights, tokens, context, logits=False).peak_bytes
    stored = on_shapes(config, weights, tokens, context, opened=ATTENTION, logits=False).peak_bytes
    return Memory(
        sum(array.nbytes for _, array in walk(weights) if not isinstance(array, Node)),
        kv_bytes,
        plain,
        4 * config.vocab_size,
        max(0, stored - plain),
        kv_bytes - growth * context,
    )


def longest_context(one: Memory, context: int, room: int) -> int:
    """How many tokens of one sequence fit in so many bytes, scores not stored; 0 when the weights alone do not.

    one, context   memory at some context of at least a chunk: from there on only the cache grows

    >>> from tinyqwen.sizes import SIZES
    >>> config = SIZES["0.5B"].config()
    >>> fits = longest_context(memory(config, 1000), 1000, room=8 * 10**9)
    >>> memory(config, fits).total <= 8 * 10**9 < memory(config, fits + 1).total
    True
    """
    growing = one.kv - one.windows
    left = room - (one.total - growing)
    if not growing:  # every layer slides: this context, and any other
        return context if left >= 0 else 0
    return max(0, left * context // growing)


# ---- positions ----


def wavelengths(config: Config) -> np.ndarray:
    """After how many tokens each of RoPE's K/2 pairs has turned once, from fast to slow.

    Read off the model's own tables: the angle of position 1 is the frequency.

    >>> from tinyqwen.sizes import SIZES
    >>> wavelengths(SIZES["0.5B"].config())[[0, -1]].round(2).tolist()            # 2 pi, and 2 pi * 1e6^(62/64)
    [6.28, 4080185.13]
    """
    cos_TKh, sin_TKh = rope_tables(
        Backend(dtype=np.float64), np.array([1]), head_dim=config.head_dim, theta=config.rope_theta,
        scaling=config.rope_scaling,
    )  # fmt: skip
    return 2 * math.pi / np.arctan2(sin_TKh[0], cos_TKh[0])
