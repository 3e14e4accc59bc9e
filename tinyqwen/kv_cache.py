"""KV cache: the keys and values of all tokens so far, so that a new token costs one token's work.

Without it, token number S would recompute S - 1 keys and values that cannot have changed: attention is causal, nothing
that follows alters them. With it, decoding reads 2 * L * G * K numbers per earlier token instead (0.5B: 6144, 24 KiB in
float32). Keys are stored after RoPE, at their own position, and never turned again.

A cache belongs to one sequence. Its `length` moves in one place only, the last line of `model.forward`: a step that is
interrupted half-way leaves the cache as it was, and setting `length` back forgets tokens.
"""

from __future__ import annotations

from backends.interface import Backend, Cost, nbytes, operation
from tinyqwen.config import Config


class KVCache:
    """Keys and values of one sequence, per layer as k_GSK and v_GSK, in memory that grows by doubling.

    >>> from backends import get
    >>> config = Config(hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    >>> cache = KVCache(get("numpy"), config)
    >>> cache.reserve(100); cache.length, cache.capacity, cache.nbytes
    (0, 256, 49152)
    """

    def __init__(self, backend: Backend, config: Config):
        self.backend = backend
        self.length = 0
        self.capacity = 0
        self._shape = (2, config.num_key_value_heads, config.head_dim)
        self.layers: list = [None] * config.num_hidden_layers  # each an array kv_2GSK: keys, then values

    @property
    def nbytes(self) -> int:
        """Bytes held, the room for tokens to come included."""
        return nbytes(self.layers)

    def reserve(self, length: int) -> None:
        """Make room for that many tokens, keeping what is there. Doubling keeps the copies rare."""
        if length <= self.capacity:
            return
        capacity = max(256, 2 * self.capacity)
        while capacity < length:
            capacity *= 2
        pair, G, K = self._shape
        for layer, old_2GSK in enumerate(self.layers):
            new_2GNK = self.backend.empty((pair, G, capacity, K))  # N: room for tokens, used or not
            if self.length:
                new_2GNK[:, :, : self.length] = old_2GSK[:, :, : self.length]
            self.layers[layer] = new_2GNK
        self.capacity = capacity


@operation
def update_cache(backend, k_TGK, v_TGK, *, spans, layer):
    """Store the new keys and values behind each sequence's old ones.

    k_TGK, v_TGK   of all sequences, end to end
    spans          per sequence its rows and its cache; without a cache it sees this call's tokens only (training)

    Returns two lists: per sequence k_GSK and v_GSK, views of everything it may see, this call's tokens included.
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
    moved = nbytes(k_TGK, v_TGK)
    return Cost(visible_views(k_TGK, v_TGK, spans, layer), flops=0, read=moved, written=moved)
