"""Kernels ready before the first token: a tiny model of the same kind runs once.

A compiled kernel belongs to the types of its arguments: the weights' format, the cache's, mapped (read-only) memory or
not. A tiny model that shares them with the real one needs the same kernels for prompt and decoding, in milliseconds. At
the very first start that is the time to compile them; later they are read from disk (`backends/cpu/compiling.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.interface import Backend
from backends.packed import Packed, can_pack, pack
from backends.quantised import Quantised, quantise
from tinyqwen.checkpoint.upload import upload
from tinyqwen.config import FULL, Config, DualChunk
from tinyqwen.generate import CHUNK, Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling, sample
from tinyqwen.step import make_step
from tinyqwen.weights import Node, fill, tree, walk

LONG = 70  # tokens of a prompt that take the ways of a long one


def prepare(
    backend: Backend,
    config: Config,
    weights: Node,
    sampling: Sampling,
    *,
    make_cache: Callable[[Backend, Config], KVCache] = KVCache,
    compiling: Callable[[str], None] | None = None,
) -> None:
    """Have all kernels at hand that this model needs.

    make_cache   as the real model's caches are made
    compiling    called with a kernel's name before it is compiled; never, once all are on disk
    """
    if backend.name == "cuda":
        prepare_device(backend.at(0), config, weights, sampling, make_cache, compiling)
    if backend.name != "cpu":
        return
    from backends.cpu.compiling import announced

    tiny, real = small(config), {kind(path): array for path, array in walk(weights)}
    tiny_weights = tree(fill(tiny, lambda name, shape: like(real[kind(name.removeprefix("model."))], shape)))
    with announced(compiling or (lambda name: None)):
        cache, other = make_cache(backend, tiny), make_cache(backend, tiny)
        # Large chunks, a few tokens, one, with enough keys that attention shares them out, too, also where it meets
        # them in parts; and one of each of two sequences. The logits of all tokens, because several sequences want
        # several rows.
        chunk, one = [([0] * CHUNK, cache)], [([0], cache)]
        for parts in (chunk, chunk, chunk, [([0] * 3, cache)], one, [*one, ([0], other)]):
            logits_NV = forward(backend, tiny, tiny_weights, make_step(parts, all_logits=True))
        sample(backend, logits_NV[0], np.zeros(1, int), sampling=sampling, uniform=0.5)


def prepare_device(backend: Any, config: Config, weights: Node, sampling: Sampling, make_cache, compiling) -> None:
    """The same on a device: a prompt, and some tokens, recorded and replayed."""
    tiny, real = small(config, width=64), {kind(path): array for path, array in walk(weights)}
    zeros = fill(tiny, lambda name, shape: zeros_like(real[kind(name.removeprefix("model."))], shape))
    before, backend.compiling = backend.compiling, compiling or backend.compiling
    running = Running([0] * LONG, make_cache(backend, tiny), sampling, context=2 * LONG, max_new_tokens=3)
    for _ in generate(backend, tiny, upload(backend, tree(zeros)), [running]):
        pass
    backend.compiling = before


def small(config: Config, width: int = 512) -> Config:
    """One layer of each kind; what kernels may be made for (sizes of heads) stays, all else shrinks.

    Not below 512 for threads, though: with so wide rows, a chunk of prompt is large enough to be shared by them.

    >>> from tinyqwen.sizes import SIZES
    >>> small(SIZES["57B-A14B"].config()).letters
    {'D': 512, 'H': 14, 'G': 2, 'R': 7, 'K': 128, 'Kh': 64, 'F': 512, 'V': 2048, 'L': 1, 'E': 2, 'A': 2, 'M': 32}
    """
    experts, K = min(config.num_experts, 2), config.head_dim
    R = config.num_attention_heads // config.num_key_value_heads
    chunk = config.dual_chunk_attention_config and DualChunk(40, 8)
    types = tuple(dict.fromkeys((FULL, *config.layer_types)))  # a window far shorter than the text, so that it slides
    G = max(min(config.num_key_value_heads, 2), -(-width // (R * K)))  # one head alone is another type: end to end
    return dataclasses.replace(
        config, hidden_size=width, intermediate_size=width, num_hidden_layers=len(types), vocab_size=4 * width,
        head_dim=K, num_attention_heads=R * G, num_key_value_heads=G, num_experts=experts, num_experts_per_tok=experts,
        moe_intermediate_size=32, shared_expert_intermediate_size=width,
        decoder_sparse_step=1, mlp_only_layers=(), layer_types=types,
        sliding_window=config.sliding_window and 50,
        dual_chunk_attention_config=chunk,
    )  # fmt: skip


def kind(path: str) -> str:
    """A tensor's name without the numbers of layer and expert: those of a kind have one format.

    >>> kind("layers.12.mlp.experts.5.up_proj.weight")
    'layers.N.mlp.experts.N.up_proj.weight'
    """
    return re.sub(r"\d+", "N", path)


def zeros_like(real: Any, shape: tuple[int, ...]) -> Any:
    """Zeros in the format of a real tensor, on the host."""
    if isinstance(real, Quantised):
        return quantise(np.zeros(shape, np.float32), real.bits)
    return np.zeros(shape, real.dtype)


def like(real: Any, shape: tuple[int, ...]) -> Any:
    """Zeros in the format of a real tensor, read-only if that is."""
    zeros: Any
    if isinstance(real, Quantised):
        zeros = quantise(np.zeros(shape, np.float32), real.bits)
        zeros.values.flags.writeable = real.values.flags.writeable
        zeros.scales.flags.writeable = real.scales.flags.writeable
    elif isinstance(real, Packed) and can_pack(shape):
        zeros = pack(np.zeros(shape, real.dtype))
    else:
        zeros = np.zeros(shape, real.dtype)
        zeros.flags.writeable = isinstance(real, np.ndarray) and real.flags.writeable
    return zeros
