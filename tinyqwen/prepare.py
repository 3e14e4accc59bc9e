"""Kernels ready before the first token: a tiny model of the same kind runs once.

A compiled kernel belongs to the types of its arguments: the weights' format, the cache's, mapped (read-only) memory or
not. A tiny model that shares them with the real one needs the same kernels for prompt and decoding, in milliseconds. At
the very first start that is the time to compile them, in which a second process helps (`prepare_beside.py`); later they
are read from disk (`backends/cpu/compiling.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from backends.interface import Backend
from backends.packed import BFLOAT16, Packed, can_pack
from backends.quantised import Quantised, quantise
from tinyqwen.checkpoint.upload import upload
from tinyqwen.config import FULL, Config, DualChunk
from tinyqwen.generate import CHUNK, Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling, sample
from tinyqwen.shortlist import sample_shortlisted
from tinyqwen.step import make_step
from tinyqwen.weights import Node, fill, tree, walk

LONG = 70  # tokens of a prompt that take the ways of a long one


class Form(NamedTuple):
    """How a tensor is stored, as far as kernels are made for it.

    dtype       of its numbers, or of those that it stands for
    stored      "plain", "packed" (bf16 in 12 bits) or the bits of a quantised one
    writeable   or a mapped file's
    """

    dtype: np.dtype
    stored: str | int
    writeable: bool


class Tiny(NamedTuple):
    """A tiny model of the same kind as the real one, in words that another process understands.

    forms      of the real tensors, by `kind`
    sketched   whether tokens are chosen with a sketch of the head
    together   whether several sequences are in a step
    """

    config: Config
    forms: dict[str, Form]
    kv_format: str
    sampling: Sampling
    sketched: bool = False
    together: bool = True

    def weights(self) -> Node:
        return tree(fill(self.config, lambda name, shape: zeros(self.forms[kind(name.removeprefix("model."))], shape)))


def prepare(
    backend: Backend,
    config: Config,
    weights: Node,
    sampling: Sampling,
    *,
    kv_format: str = "f32",
    packing: bool = False,
    sketching: bool = False,
    together: bool = True,
    compiling: Callable[[str], None] | None = None,
) -> None:
    """Have all kernels at hand that this model needs.

    kv_format   of the real model's caches
    packing     whether weights in bf16 are being packed (`Checkpoint.packing`): kernels of before and after
    sketching   whether there will be a sketch of the head (`Checkpoint.sketching`)
    together    whether several sequences may be in a step: nearly as many kernels again
    compiling   called with a kernel's name before it is compiled; never, once all are on disk
    """
    forms = {kind(path): form_of(array) for path, array in walk(weights) if not isinstance(array, Node)}
    if backend.name == "cuda":
        prepare_device(backend.at(0), Tiny(small(config, width=64), forms, kv_format, sampling), compiling)
    if backend.name != "cpu":
        return
    from backends.cpu.compiling import announced
    from tinyqwen.prepare_beside import second_process

    after = {name: form._replace(stored="packed") if can_be_packed(form) else form for name, form in forms.items()}
    before = {name: form._replace(stored="plain") if form.stored == "packed" else form for name, form in forms.items()}
    stages = [before, after] if packing else [forms]
    tinies = [Tiny(small(config), each, kv_format, sampling, sketching, together) for each in stages]
    with second_process(backend, tinies) as begin:

        def missing(name: str) -> None:
            begin()
            if compiling is not None:
                compiling(name)

        with announced(missing):
            for tiny in tinies:
                run(backend, tiny)


def run(backend: Backend, tiny: Tiny, *, backwards: bool = False) -> None:
    """What asks for every kernel: first those of a prompt and then those of decoding, or the other way round.

    Large chunks, a few tokens, with enough keys that attention shares them out, too, also where it meets them in parts;
    one; and if they may be together, one of a sequence and two of another, and one of each. The logits of all tokens,
    because several sequences want several rows.
    """
    weights, (cache, other) = tiny.weights(), (KVCache(backend, tiny.config, tiny.kv_format) for _ in range(2))
    chunk, one = [([0] * CHUNK, cache)], [([0], cache)]
    both = ([*one, ([0] * 2, other)], [*one, ([0], other)]) if tiny.together else ()
    steps = chunk, chunk, chunk, [([0] * 3, cache)], *both, one
    if backwards:
        cache.reserve(3 * CHUNK, step=CHUNK)
        cache.length = 3 * CHUNK
        choose(backend, tiny, weights)
    for parts in steps if not backwards else steps[::-1]:
        logits_NV = forward(backend, tiny.config, weights, make_step(parts, all_logits=True))
    sample(backend, logits_NV[0], np.zeros(1, int), sampling=tiny.sampling, uniform=0.5)
    if not backwards:
        choose(backend, tiny, weights)


def choose(backend: Backend, tiny: Tiny, weights: Node) -> None:
    """Draw a sketch of the head, if the real model has one, and choose a token with it."""
    if tiny.sketched:
        from backends.cpu.sketching import drawn

        head_VD, x_1D = weights.lm_head.weight, np.zeros((1, tiny.config.hidden_size), np.float32)
        sample_shortlisted(
            backend, x_1D, head_VD, drawn(head_VD), np.zeros(1, int), sampling=Sampling(), uniform=0.5,
            vocabulary=tiny.config.vocab_size,
        )  # fmt: skip


def prepare_device(backend: Any, tiny: Tiny, compiling: Callable[[str], None] | None) -> None:
    """The same on a device: a prompt, and some tokens, recorded and replayed."""
    before, backend.compiling = backend.compiling, compiling or backend.compiling
    cache, weights = KVCache(backend, tiny.config, tiny.kv_format), upload(backend, tiny.weights())
    running = Running([0] * LONG, cache, tiny.sampling, context=2 * LONG, max_new_tokens=3)
    for _ in generate(backend, tiny.config, weights, [running]):
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


def can_be_packed(form: Form) -> bool:
    return form.stored == "plain" and form.dtype == BFLOAT16


def form_of(real: Any) -> Form:
    stored: str | int = real.bits if isinstance(real, Quantised) else "packed" if isinstance(real, Packed) else "plain"
    memory = real.values if isinstance(real, Quantised) else real
    return Form(np.dtype(real.dtype), stored, stored != "packed" and getattr(memory.flags, "writeable", True))


def zeros(form: Form, shape: tuple[int, ...]) -> Any:
    """A tensor of that form."""
    if isinstance(form.stored, int):
        quantised = quantise(np.zeros(shape, np.float32), form.stored)
        quantised.values.flags.writeable = quantised.scales.flags.writeable = form.writeable
        return quantised
    array = np.zeros(shape, form.dtype)
    if form.stored == "packed" and can_pack(shape):
        from backends.cpu.packing import Packing  # kernels, too

        packing = Packing(shape)
        packing.add(0, array)
        return packing.end()
    array.flags.writeable = form.writeable
    return array
