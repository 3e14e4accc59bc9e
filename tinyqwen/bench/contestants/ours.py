"""This project itself: `tinyqwen.model.forward` and a KV cache, as `generate` uses them."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends import nbytes
from tinyqwen import __version__
from tinyqwen.bench.contestants.task import Task, some_ids, timed, timed_steps
from tinyqwen.blocks.linear import linear
from tinyqwen.generate import CHUNK
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import last_hidden_state
from tinyqwen.runtime import load as load_runtime
from tinyqwen.sampling import Sampling
from tinyqwen.shortlist import sample_shortlisted
from tinyqwen.step import make_step
from tinyqwen.weights import Node, walk

FORMATS = ("f32", "bf16", "int8", "int4")
NEEDS = ()
NOBODY = np.array([], int)


def prepare(task: Task) -> None:
    """Loading makes what is missing and keeps it: quantised weights, compiled kernels."""
    model = load(task)
    model.prefill(2)
    model.decode(0, 1, 1)


def load(task: Task) -> Model:
    return Model(task)


class Model:
    """A loaded model and the caches of each thing that is measured."""

    def __init__(self, task: Task):
        name, kv = task.options.get("backend", "cpu"), task.options.get("kv", "bf16")
        settings: dict[str, Any] = {"threads": task.threads} if name == "cpu" else {}
        settings["together"] = False  # whose memory is measured decodes alone; what 16 need, the warm-up round compiles
        settings["sketched"] = task.options.get("sketch", "yes") == "yes"
        self.runtime = load_runtime(task.folder, backend=name, dtype=task.dtype, kv_dtype=kv, **settings)
        self.runtime.checkpoint.settle()
        self.backend, self.config = self.runtime.backend, self.runtime.config
        self.weights = self.runtime.checkpoint.weights
        self.caches: dict = {}
        head, table = self.weights.lm_head.weight, self.weights.embed_tokens.weight
        self.token_bytes = nbytes(*(array for _, array in walk(self.weights) if not isinstance(array, Node)))
        self.weight_bytes = self.token_bytes
        if table is not head:  # of which a token takes one row
            self.token_bytes -= table.nbytes
        if sketch := self.runtime.checkpoint.sketch:
            self.weight_bytes += sketch.nbytes
            self.token_bytes += sketch.nbytes - head.nbytes
        self.about = {
            "version": f"tinyqwen {__version__}",
            "settings": f"{name} backend, {task.dtype} weights, {kv} cache, prompts in chunks of {CHUNK}"
            + ", a sketch of the head" * (self.runtime.checkpoint.sketch is not None),
        }

    def feed(self, caches: list[KVCache], ids_ST: np.ndarray) -> np.ndarray:
        """Take the next ids of every sequence, and give each one's next id, the likeliest. S sequences, T ids each."""
        T = ids_ST.shape[1]
        chunk = max(1, CHUNK // len(caches))
        lengths = [cache.length + T for cache in caches]
        model = self.backend, self.config, self.weights
        for begin in range(0, T, chunk):
            parts = [(ids_T[begin : begin + chunk].tolist(), cache) for ids_T, cache in zip(ids_ST, caches)]
            step = make_step(parts, lengths=lengths)
            x_ND = last_hidden_state(*model, step)
            step.end()
        head_VD, sketch = self.weights.lm_head.weight, self.runtime.checkpoint.sketch
        if sketch is not None and len(x_ND) == 1:
            arrays = x_ND, head_VD, sketch, NOBODY
            token = sample_shortlisted(self.backend, *arrays, sampling=Sampling(), uniform=0.0, vocabulary=len(head_VD))
            return np.array([token])
        return linear(self.backend, x_ND, head_VD).argmax(-1)

    def new_caches(self, sequences: int) -> list[KVCache]:
        return [self.runtime.cache() for _ in range(sequences)]

    def prefill(self, tokens: int) -> float:
        ids = some_ids(self.config.vocab_size, 1, tokens)
        return timed(lambda: self.feed(self.new_caches(1), ids))

    def decode(self, depth: int, tokens: int, sequences: int) -> list[float]:
        caches = self.caches.get((depth, sequences))
        if caches is None or not all(cache.keeps(depth) for cache in caches):  # sliding windows cannot go far back
            caches = self.new_caches(sequences)
            if depth:
                self.feed(caches, some_ids(self.config.vocab_size, sequences, depth))
            for cache in caches:
                cache.reserve(depth + tokens, step=1)
            self.caches[depth, sequences] = caches
        for cache in caches:
            cache.length = depth  # forget what an earlier round decoded
        first = some_ids(self.config.vocab_size, sequences, 1)
        return timed_steps(lambda ids, _: self.feed(caches, ids), first, range(depth, depth + tokens))
