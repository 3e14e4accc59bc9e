"""KV cache: the keys and values of all tokens so far, so that a new token costs one token's work.

Without it, token number S would recompute S - 1 keys and values that cannot have changed: attention is causal, nothing
that follows alters them. With it, decoding reads 2 * L * G * K numbers per earlier token instead (0.5B: 6144, 24 KiB in
float32). Keys are stored after RoPE, at their own position, and never turned again.

A cache belongs to one sequence. Its `length` moves in one place only, the last line of `model.forward`: a step that is
interrupted half-way leaves the cache as it was, and setting `length` back forgets tokens. A layer that sees a window
keeps no more than that, in a ring: there tokens are forgotten for good, and the way back ends where the ring does.

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
    """Keys and values of one sequence, per layer as kv_2GNK: keys, then values, in N slots.

    Position p lies in slot p mod N. A layer that sees everything has a slot for each position, in memory that grows by
    doubling. One that sees a window of W has W - 1 + the longest step yet, and no more however long the text becomes: a
    step writes over what it cannot see itself, so one that fails half-way has destroyed nothing that is needed.

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
        self.capacity = 0
        self.windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        self._window = max((window for window in self.windows if window is not None), default=None)
        self.layers: list = [None] * config.num_hidden_layers  # each an array kv_2GNK
        self._shape = (2, config.num_key_value_heads, config.head_dim)
        self._length = 0
        self._longest_step = 0
        self._held = 0  # layers with a window hold positions from here on

    @property
    def length(self) -> int:
        """How many tokens count. Set it back to forget the last ones: ValueError if windows no longer reach so far."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        if self._window is not None and length < self._length and not self.keeps(length):
            raise ValueError(
                f"the cache cannot go back from {self._length} tokens to {length}: its windows hold tokens from "
                f"{self._held} on, and those before are gone; set its length to 0 and read the text again"
            )
        self._length = length
        if length == 0:
            self._held = 0

    def keeps(self, length: int) -> bool:
        """Whether all that the token behind so many would see is still there."""
        return length == 0 or self._window is None or max(0, length - (self._window - 1)) >= self._held

    @property
    def nbytes(self) -> int:
        """Bytes held, the room for tokens to come included."""
        return nbytes(self.layers)

    @property
    def bytes_per_token(self) -> int:
        """What a token takes, as long as windows are not full."""
        return len(self.layers) * room(Meta(self.backend.dtype), self._shape, self.format).nbytes

    def bytes_at(self, length: int, step: int) -> int:
        """What a text of that length takes, read in steps of so many tokens at most; without room for more.

        >>> from backends import get
        >>> config = Config(8, 8, 2, 2, 9, sliding_window=10, layer_types=("full_attention", "sliding_attention"))
        >>> [KVCache(get("numpy"), config).bytes_at(length, step=6) for length in (10, 15, 1000)]  # 64 bytes a layer
        [1280, 1920, 64960]
        """
        slots = sum(slots_for(window, length, step) for window in self.windows)
        return slots * self.bytes_per_token // len(self.layers)

    def reserve(self, length: int, step: int | None = None) -> None:
        """Make room for a text of that many tokens, keeping what is there. Doubling keeps the copies rare.

        step   how many of them come at once, at most. Default: all that are not there yet, and they come next
        """
        longest = max(self._longest_step, length - self._length if step is None else step)
        if length > self.capacity or longest > self._longest_step:
            self._grow(length, longest)
        if step is None and self._window is not None:  # what comes will be written over the oldest
            self._held = max(self._held, length - (self._window - 1 + longest))

    def _grow(self, length: int, longest: int) -> None:
        capacity = max(256, self.capacity)
        while capacity < length:
            capacity *= 2
        pair, G, K = self._shape
        for layer, window in enumerate(self.windows):
            old_2GSK, slots = self.layers[layer], slots_for(window, capacity, longest)
            if old_2GSK is None or old_2GSK.shape[2] < slots:
                new_2GNK = room(self.backend.at(layer), (pair, G, slots, K), self.format)
                first = 0 if window is None else self._held
                if self._length > first:
                    move(old_2GSK, new_2GNK, first, self._length)
                self.layers[layer] = new_2GNK
        self.capacity, self._longest_step = capacity, longest  # at the end: memory may give out before

    def stretches(self, layer: int, start: int, stop: int) -> list:
        """The memory of positions start .. stop - 1, in order: one view kv_2GSK, or two where slots begin anew."""
        return stretches(self.layers[layer], start, stop)


def slots_for(window: int | None, length: int, step: int) -> int:
    """How many positions a layer must remember to read a text of that length in such steps."""
    return length if window is None else min(length, window - 1 + step)


def stretches(kv_2GNK, start: int, stop: int) -> list:
    slots = kv_2GNK.shape[2]
    first, beyond = start % slots, max(0, start % slots + stop - start - slots)
    before_2GSK = kv_2GNK[:, :, first : first + stop - start - beyond]
    return [before_2GSK, kv_2GNK[:, :, :beyond]] if beyond else [before_2GSK]


def move(old_2GSK, new_2GNK, start: int, stop: int) -> None:
    """Copy positions start .. stop - 1 from S slots to N."""
    for source in stretches(old_2GSK, start, stop):
        done = 0
        for target in stretches(new_2GNK, start, start + source.shape[2]):
            target[...] = source[:, :, done : done + target.shape[2]]
            done += target.shape[2]
        start += done


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
    steps_GS1 = 127 / np.where(largest_GS1 > 1e-36, largest_GS1, np.inf)  # of next to nothing: 0
    sound_GS1 = largest_GS1 < np.inf
    values_GSK = np.rint(np.where(sound_GS1, x_GSK, 0) * steps_GS1).astype(np.int8)
    return values_GSK, np.where(sound_GS1, largest_GS1 * np.float32(1 / 127), np.nan).astype(np.float32)[..., 0]


@operation
def update_cache(backend, k_TGK, v_TGK, *, spans, layer, window=None):
    """Store the new keys and values behind each sequence's old ones.

    k_TGK, v_TGK   of all sequences, end to end
    spans          per sequence its rows and its cache; without a cache it sees this call's tokens only (training)
    window         how many keys a query of this layer sees, itself included; None for all

    Returns two lists: per sequence k_GSK and v_GSK, views of everything it may see, this call's tokens included. With a
    window, per sequence a list of stretches, in order: one, or two where the cache's slots begin anew. They are of the
    cache's type; `astype` widens them.
    """
    for span in spans:
        if span.cache is not None:
            past, row = span.cache.length, span.start
            for new_2GSK in span.cache.stretches(layer, past, past + span.stop - span.start):
                rows = slice(row, row + new_2GSK.shape[2])
                new_2GSK[0, :, :] = k_TGK[rows].swapaxes(0, 1)
                new_2GSK[1, :, :] = v_TGK[rows].swapaxes(0, 1)
                row = rows.stop
    return visible_views(k_TGK, v_TGK, spans, layer, window)


def visible_views(k_TGK, v_TGK, spans, layer, window):
    keys, values = [], []
    for span in spans:
        if span.cache is not None:
            past = span.cache.length
            first = 0 if window is None else max(0, past - (window - 1))
            views = span.cache.stretches(layer, first, past + span.stop - span.start)
            k_stretches, v_stretches = [kv_2GSK[0] for kv_2GSK in views], [kv_2GSK[1] for kv_2GSK in views]
        else:
            k_stretches = [k_TGK[span.start : span.stop].swapaxes(0, 1)]
            v_stretches = [v_TGK[span.start : span.stop].swapaxes(0, 1)]
        keys.append(k_stretches[0] if window is None else k_stretches)
        values.append(v_stretches[0] if window is None else v_stretches)
    return keys, values


@update_cache.cost
def _(k_TGK, v_TGK, *, spans, layer, window=None):
    views, written = visible_views(k_TGK, v_TGK, spans, layer, window), 0
    for span in spans:
        if span.cache is not None:
            past = span.cache.length
            written += nbytes(span.cache.stretches(layer, past, past + span.stop - span.start))
    return Cost(views, flops=0, read=nbytes(k_TGK, v_TGK), written=written)
