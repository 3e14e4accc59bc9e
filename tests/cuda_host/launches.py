"""Every kernel once, at odd sizes, for the sanitizers: `python -m tests.cuda_host.launches all` (or one of bugs.cu).

The sanitizer must be there before Python is, so this runs in a process of its own (test_planted_bugs.py).
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from backends.cuda import source
from backends.cuda.widening import widened
from backends.quantised import quantise
from tests.cuda_host.host import HERE, Module
from tests.cuda_host.on_numpy import OnNumPy
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.attention_parts import merge_parts
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.moe import experts, route, sigmoid_gate
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.config import Config
from tinyqwen.kv_cache import KV_FORMATS, KVCache, update_cache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling
from tinyqwen.step import Span, make_step
from tinyqwen.weights import random_weights, tree

FORMATS = {
    "f32": lambda matrix: matrix,
    "bf16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": lambda matrix: quantise(matrix, 8),
    "int4": lambda matrix: quantise(matrix, 4),
}


class Noting(OnNumPy):
    """Notes which kernels were launched."""

    def __init__(self):
        super().__init__()
        self.launched: set[str] = set()

    def launch(self, name, *rest, **more) -> None:
        self.launched.add(name)
        super().launch(name, *rest, **more)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def small(gpu) -> None:
    rms_norm(gpu, normal(2, 37), normal(37), eps=1e-6)
    swiglu(gpu, normal(2, 37), normal(2, 37))
    add(gpu, normal(2, 37), normal(2, 37))
    sigmoid_gate(gpu, normal(2, 1), normal(2, 37))
    rope(gpu, normal(2, 3, 8), *rope_tables(gpu, np.array([5, 6]), head_dim=8, theta=1e4))


def matrices(gpu) -> None:
    for in_format in FORMATS.values():
        weight = in_format(normal(5, 40))
        take_rows(gpu, weight, np.array([4, 0]))
        for T in (1, 3):
            linear(gpu, normal(T, 40), weight, normal(5))
        widened(gpu, weight)
    linear(gpu, normal(1, 9), normal(4 * 4 * 132, 9))  # so many rows that no warps share one


def reading(gpu) -> None:
    arguments = np.zeros(4 * 99, np.uint32), np.uint64(99), np.uint32(1), np.zeros(1, np.uint32)
    gpu.launch("read_kernel", 1, 32, arguments)


def choices(gpu) -> None:
    places = [SimpleNamespace(weight=normal(*shape)) for shape in ((12, 9), (12, 9), (9, 12))]
    some = [SimpleNamespace(gate_proj=places[0], up_proj=places[1], down_proj=places[2])] * 5
    expert_TA, weight_TA = route(gpu, normal(1, 9), normal(5, 9), top_k=2, normalise=True)
    experts(gpu, normal(1, 9), expert_TA, weight_TA, some)


def tokens(gpu) -> None:
    settings = Sampling(True, temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.1)
    ids, seen_S = np.zeros((3, 1), np.int64), np.arange(5)  # an id that is there twice is written twice, and alike
    gpu.bodies["advance"](gpu, normal(1, 1100), [settings], np.array([0.5]), *ids, [seen_S])


def keys(gpu) -> None:
    for S in (5, 130):  # one split, and several that merge
        k_GSK, v_GSK = normal(1, S, 10), normal(1, S, 10)
        attention(gpu, normal(2, 3, 10), [k_GSK], [v_GSK], spans=(Span(0, 2, None),))
    kv = [normal(1, S, 10) for S in (3, 130)]  # two sequences, of which one has a row block more
    attention(gpu, normal(5, 3, 10), kv, kv, spans=(Span(0, 1, None), Span(1, 5, None)))


def parts(gpu) -> None:
    outs, lses = (
        [normal(2, 3, 10) for _ in range(3)],
        [normal(2, 3), np.full((2, 3), -np.inf, np.float32), normal(2, 3)],
    )
    merge_parts(gpu, outs, lses)


def caches(gpu) -> None:
    """Of two sequences, the second at the end of its memory."""
    config = Config(16, 8, 1, 4, 8, num_key_value_heads=2, head_dim=10)
    for format in KV_FORMATS:
        some = [KVCache(gpu, config, format) for _ in range(2)]
        for cache, T, past in zip(some, (1, 3), (0, 253)):
            cache.reserve(past + T)
            cache.length = past
        update_cache(gpu, normal(4, 2, 10), normal(4, 2, 10), spans=(Span(0, 1, some[0]), Span(1, 4, some[1])), layer=0)


def prompts(gpu) -> None:
    cache = normal(1, 70, 64).astype(ml_dtypes.bfloat16)
    attention(gpu, normal(33, 2, 64), [cache], [cache], spans=(Span(0, 33, None),))


def layers(gpu) -> None:
    config = Config(16, 8, 1, 1, 8, head_dim=32)
    for format, kv in (("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")):
        weights = random_weights(config, 0)
        weights = tree({name: FORMATS[format](a) if a.ndim == 2 else a for name, a in weights.items()})
        forward(gpu, config, weights, make_step([([1], KVCache(gpu, config, kv))]))


def bug(name: str) -> None:
    kernel = Module((HERE / "bugs.cu").read_text().join(['#line 1 "bugs.cu"\n', ""])).get_function(name)
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    kernel((1,), (64,), {"overrun_kernel": (y, np.int32(64))}.get(name, (x, y)))


def main() -> None:
    if sys.argv[1] != "all":
        return bug(sys.argv[1])
    gpu = Noting()
    for launches in (small, matrices, reading, choices, tokens, keys, parts, caches, prompts, layers):
        launches(gpu)
    if missing := source.KERNELS.keys() - gpu.launched:
        raise SystemExit(f"nobody has launched {', '.join(sorted(missing))}: add a launch here")
    print(f"{len(source.KERNELS)} kernels, all fine")


if __name__ == "__main__":
    main()
