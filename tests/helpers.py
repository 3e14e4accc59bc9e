"""What several tests share: small models, two watching wrappers, and the ways to compare arrays."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from backends import Backend, Wrapper
from backends.quantised import quantise
from tinyqwen.config import FULL, SLIDING, Config, DualChunk
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

# ---- small models -------------------------------------------------------------------------------------------------
# All sizes differ from each other, and H * K differs from D, so that axes which are mixed up show.


def dense_config(**changes) -> Config:
    """Three layers, six query heads to two KV heads."""
    fields = dict(
        hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        head_dim=10, vocab_size=41, rope_theta=1e4,
    )  # fmt: skip
    return Config(**{**fields, **changes})


def window_config(**changes) -> Config:
    """The first layer sees everything, the others the last four tokens."""
    return dense_config(**{"sliding_window": 4, "layer_types": (FULL, SLIDING, SLIDING), **changes})


def chunk_config(**changes) -> Config:
    """A chunk every four tokens; nothing looks farther than six away."""
    return dense_config(**{"dual_chunk_attention_config": DualChunk(6, 2), **changes})


def moe_config(**changes) -> Config:
    """Layer 1 of four is sparse: every second one would be, but layer 3 is excepted by name."""
    fields = dict(
        model_type="qwen2_moe", num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=(3,), num_experts=9,
        num_experts_per_tok=4, moe_intermediate_size=13, shared_expert_intermediate_size=17,
    )  # fmt: skip
    return dense_config(**{**fields, **changes})


CONFIGS = {
    "dense": dense_config(),
    "tied": dense_config(tie_word_embeddings=True),
    "window": window_config(),
    "chunks": chunk_config(),
    "yarn": dense_config(max_position_embeddings=512).with_yarn(4),  # all three kinds of pairs: 0, two ramps, 1
    "moe": moe_config(),
    "moe-normalised": moe_config(norm_topk_prob=True, mlp_only_layers=(), decoder_sparse_step=1, num_hidden_layers=2),
}


def small_weights(config: Config, backend: Backend | None = None, seed: int = 0):
    """Random weights, large enough that attention, gates and routers choose instead of averaging."""
    tensors = random_weights(config, seed, scale=0.3)
    return tree(tensors) if backend is None else on(backend, tensors)


def on(backend: Backend, tensors: dict[str, np.ndarray]):
    """The tree of these tensors, where that backend keeps its arrays."""
    return tree({name: backend.xp.asarray(tensor) for name, tensor in tensors.items()})


FORMATS = {
    "f32": lambda matrix: matrix,
    "bf16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": lambda matrix: quantise(matrix, 8),
    "int4": lambda matrix: quantise(matrix, 4),
}


def in_format(config: Config, format: str, scale: float = 0.02):
    """Random weights whose matrices are kept in that format."""
    tensors = random_weights(config, scale=scale)
    return tree({name: FORMATS[format](tensor) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()})


def tokens(config: Config, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length).tolist()


def logits_of(backend: Backend, config: Config, weights, ids, cache: KVCache | None = None) -> np.ndarray:
    """The logits of every token of one sequence."""
    return host(forward(backend, config, weights, make_step([(ids, cache)], all_logits=True)))


def greedy(backend: Backend, config: Config, weights, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation, token by token through the cache."""
    cache = KVCache(backend, config)
    ids, out = list(prompt), []
    for _ in range(count):
        logits_V = host(forward(backend, config, weights, make_step([(ids, cache)])))[0]
        ids = [int(logits_V.argmax())]
        out += ids
    return out


def decoded(backend: Backend, config: Config, weights, prompt: int, count: int, kv: str = "f32") -> np.ndarray:
    """The logits of tokens that come one after another, behind a prompt of that length."""
    cache = KVCache(backend, config, kv)
    forward(backend, config, weights, make_step([(tokens(config, prompt), cache)]))
    steps = (make_step([([token], cache)]) for token in range(count))
    return np.stack([host(forward(backend, config, weights, step)) for step in steps])


def assert_every_layer(backend: Backend, config: Config, weights, ids: list[int], expected: dict, tolerance: float):
    """The stream behind the embedding and every layer (the last one normed) is as expected; so are the logits."""
    watching = Recording(backend)
    logits_NV = logits_of(watching, config, weights, ids)
    embedding, layers, norms = (watching.outputs(name) for name in ("take_rows", "decoder_layer", "rms_norm"))
    ours = [embedding[0], *layers[:-1], norms[-1]]
    assert len(ours) == len(expected["hidden"]) == config.num_hidden_layers + 1
    for hidden_TD, expected_TD in zip(ours, expected["hidden"]):
        assert_close(hidden_TD, expected_TD, tolerance)
    assert_close(logits_NV, expected["logits"], tolerance)


# ---- arrays -------------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def host(value):
    """The NumPy arrays of a backend's arrays, in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return type(value)(host(item) for item in value)
    return value.get() if hasattr(value, "get") else value


def call(backend: Backend, function, *arrays, **settings):
    """Run an operation on NumPy arrays, wherever the backend keeps its own."""

    def device(value):
        if isinstance(value, (tuple, list)):
            return type(value)(device(item) for item in value)
        return backend.xp.asarray(value) if isinstance(value, np.ndarray) else value

    return host(function(backend, *(device(array) for array in arrays), **settings))


def assert_close(actual, expected, tolerance: float):
    """No element is off by more than that fraction of the largest expected one.

    Sums of float32 products are exact relative to the largest term, not to the result, which may cancel to near 0.
    """
    assert actual.shape == expected.shape
    worst = np.abs(actual.astype(np.float64) - expected).max(initial=0)
    allowed = tolerance * np.abs(expected).max(initial=1e-30)
    assert worst <= allowed, f"off by {worst:.3g}, allowed {allowed:.3g}"  # also false for NaN


# ---- wrappers -----------------------------------------------------------------------------------------------------


class Recording(Wrapper):
    """Keeps every operation's name and output, in the order in which they finish."""

    def __init__(self, inner: Backend):
        super().__init__(inner)
        self.seen: list[tuple[str, object]] = []

    def run(self, operation, arrays, settings, door=None):
        out = super().run(operation, arrays, settings, door)
        self.seen.append((operation.name, out))
        return out

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def outputs(self, name: str) -> list:
        return [host(out) for seen, out in self.seen if seen == name]
