"""KV cache: the keys and values of all tokens so far, so that a new token costs one token's work.

Without it, token number S would recompute S - 1 keys and values that cannot have changed: attention is causal, nothing
that follows alters them. With it, decoding reads 2 * L * G * K numbers per earlier token instead (0.5B: 6144, 24 KiB in
float32). Keys are stored after RoPE, at their own position, and never turned again.

A cache belongs to one sequence. Its `length` moves in one place only, the last line of `model.forward`: a step that is
interrupted half-way leaves the cache as it was, and setting `length` back forgets tokens.

What a number takes, and how far off it is at most:

    f32     4 bytes      nothing; the backend's own type, whatever it is
    bf16    2 bytes      1/512 of itself
    int8    1.06 bytes   1/254 of the largest in its vector: one token's key or value in one head has one scale (K = 64)
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from backends import Meta
from backends.interface import Backend, Cost, nbytes, operation
from tinyqwen.config import Config

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KV_FORMATS = ("f32", "bf16", "int8")


class KVCache:
    """Keys and values of one sequence, per layer as k_GSK and v_GSK, in memory that grows by doubling.

    format   of `KV_FORMATS`

    >>> from backends import get
    >>> config = Config(hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    >>> cache = KVCache(get("numpy"), config)
    >>> cache.reserve(100); cache.length, cache.capacity, cache.nbytes
    (0, 256, 49152)
    >>> [KVCache(get("numpy"), config, format).bytes_per_token for format in KV_FORMATS]
    [192, 96, 96]
    """

    def __init__(self, backend: Backend, config: Config, format: str = "f32"):
        if format not in KV_FORMATS:
            raise ValueError(f"a cache cannot be {format!r}; there is {', '.join(KV_FORMATS)}")
        self.backend = backend
        self.format = format
        self.length = 0
        self.capacity = 0
        self._shape = (2, config.num_key_value_heads, config.head_dim)
        self.layers: list = [None] * config.num_hidden_layers  # each an array kv_2GSK: keys, then values

    @property
    def nbytes(self) -> int:
        """Bytes held, the room for tokens to come included."""
        return nbytes(self.layers)

    @property
    def bytes_per_token(self) -> int:
        """What a token takes."""
        return len(self.layers) * room(Meta(self.backend.dtype), self._shape, self.format).nbytes

    def reserve(self, length: int) -> None:
        """Make room for that many tokens, keeping what is there. Doubling keeps the copies rare."""
        if length <= self.capacity:
            return
        capacity = max(256, 2 * self.capacity)
        while capacity < length:
            capacity *= 2
        pair, G, K = self._shape
        for layer, old_2GSK in enumerate(self.layers):
            new_2GNK = room(self.backend, (pair, G, capacity, K), self.format)  # N: room for tokens, used or not
            if self.length:
                new_2GNK[:, :, : self.length] = old_2GSK[:, :, : self.length]
            self.layers[layer] = new_2GNK
        self.capacity = capacity


def room(backend: Backend, shape: tuple[int, ...], format: str) -> Any:
    """Uninitialised memory for numbers of that format."""
    if format == "int8":
        return Scaled(backend.empty(shape, np.dtype(np.int8)), backend.empty(shape[:-1], np.dtype(np.float32)))
    return backend.empty(shape, BFLOAT16 if format == "bf16" else None)


class Scaled:
    """An array of vectors in whole numbers from -127 to 127, each vector with a scale: number = scale * value.

    values   int8, [..., S, K]
    scales   float32, [..., S]

    Rows are read and written as those of an array are; what is written is rounded.

    >>> cache = Scaled(np.zeros((2, 3), np.int8), np.zeros(2, np.float32))
    >>> cache[1] = np.float32([0.1, -12.7, 3.14]); cache.values[1], cache[1].astype(np.float32).round(3)
    (array([   1, -127,   31], dtype=int8), array([  0.1, -12.7,   3.1], dtype=float32))
    """

    dtype = np.dtype(np.int8)

    def __init__(self, values, scales):
        self.values, self.scales = values, scales

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __getitem__(self, index) -> Scaled:
        return Scaled(self.values[index], self.scales[index])

    def __setitem__(self, index, rows) -> None:
        if isinstance(rows, Scaled):
            self.values[index], self.scales[index] = rows.values, rows.scales
        else:
            self.values[index], self.scales[index] = rounded(rows)

    def astype(self, dtype, copy: bool = True):
        """The numbers in a floating point type."""
        return (self.values * self.scales[..., None]).astype(dtype, copy=False)


def rounded(x_GSK):
    """Vectors as (values, scales). One with NaN or infinity in it gets the scale NaN, and is read as NaN."""
    largest_GS1 = abs(x_GSK).max(axis=-1, keepdims=True)
    steps_GS1 = np.divide(127, largest_GS1, out=np.zeros_like(largest_GS1), where=largest_GS1 > 1e-36)  # else: all 0
    sound_GS1 = largest_GS1 < np.inf
    values_GSK = np.rint(np.where(sound_GS1, x_GSK, 0) * steps_GS1).astype(np.int8)
    return values_GSK, np.where(sound_GS1, largest_GS1 * np.float32(1 / 127), np.nan).astype(np.float32)[..., 0]


@operation
def update_cache(backend, k_TGK, v_TGK, *, spans, layer):
    """Store the new keys and values behind each sequence's old ones.

    k_TGK, v_TGK   of all sequences, end to end
    spans          per sequence its rows and its cache; without a cache it sees this call's tokens only (training)

    Returns two lists: per sequence k_GSK and v_GSK, views of everything it may see, this call's tokens included. They
    are of the cache's type; `astype` widens them.
    """
    for span in spans:
        if span.cache is not None:
            kv_2GSK = span.cache.layers[layer]
            past, total = span.cache.length, span.cache.length + span.stop - span.start
            kv_2GSK[0, :, past:total] = k_TGK[span.start : span.stop].swapaxes(0, 1)
            kv_2GSK[1, :, past:total] = v_TGK[span.start : span.stop].swapaxes(0, 1)
    return visible_views(k_TGK, v_TGK, spans, layer)


def visible_views(k_TGK, v_TGK, spans, layer):
    keys, values = [], []
    for span in spans:
        if span.cache is not None:
            k_GSK, v_GSK = span.cache.layers[layer][:, :, : span.cache.length + span.stop - span.start]
        else:
            k_GSK = k_TGK[span.start : span.stop].swapaxes(0, 1)
            v_GSK = v_TGK[span.start : span.stop].swapaxes(0, 1)
        keys.append(k_GSK)
        values.append(v_GSK)
    return keys, values


@update_cache.cost
def _(k_TGK, v_TGK, *, spans, layer):
    views, written = visible_views(k_TGK, v_TGK, spans, layer), 0
    for span in spans:
        if span.cache is not None:
            past, total = span.cache.length, span.cache.length + span.stop - span.start
            written += span.cache.layers[layer][:, :, past:total].nbytes
    return Cost(views, flops=0, read=nbytes(k_TGK, v_TGK), written=written)
