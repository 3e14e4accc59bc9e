"""Every kernel once, at odd sizes, for the sanitizers: `python -m tests.cuda_host.launches all` (or one of bugs.cu).

The sanitizer must be there before Python is, so this runs in a process of its own (test_planted_bugs.py).
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from backends.cuda import source
from backends.quantised import quantise
from tests.cuda_host.host import HERE, Module
from tests.cuda_host.on_numpy import OnNumPy
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.moe import experts, route, sigmoid_gate
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.config import Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling, sample
from tinyqwen.step import Span, make_step
from tinyqwen.weights import random_weights, tree

FORMATS = {
    "f32": lambda matrix: matrix,
    "bf16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": lambda matrix: quantise(matrix, 8),
    "int4": lambda matrix: quantise(matrix, 4),
}


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


def choices(gpu) -> None:
    places = [SimpleNamespace(weight=normal(*shape)) for shape in ((12, 9), (12, 9), (9, 12))]
    some = [SimpleNamespace(gate_proj=places[0], up_proj=places[1], down_proj=places[2])] * 5
    expert_TA, weight_TA = route(gpu, normal(1, 9), normal(5, 9), top_k=2, normalise=True)
    experts(gpu, normal(1, 9), expert_TA, weight_TA, some)


def tokens(gpu) -> None:
    settings = Sampling(True, temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.1)
    sample(gpu, normal(1100), np.array([3, 4]), sampling=settings, uniform=0.5)


def keys(gpu) -> None:
    for S in (5, 130):  # one split, and several that merge
        k_GSK, v_GSK = normal(1, S, 10), normal(1, S, 10)
        attention(gpu, normal(2, 3, 10), [k_GSK], [v_GSK], spans=(Span(0, 2, None),))


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
    for launches in (small, matrices, choices, tokens, keys, prompts, layers):
        launches(OnNumPy())
    print(f"{len(source.KERNELS)} kernels, all fine")


if __name__ == "__main__":
    main()
