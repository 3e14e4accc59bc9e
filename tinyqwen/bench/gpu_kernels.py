"""Every kernel on the device, at the sizes of a real model, against its definition in NumPy.

    python -m tinyqwen.bench.gpu_kernels        at small sizes: for compute-sanitizer, which makes all much slower

    error      the largest difference, as a share of the largest number that was expected
    allowed    1e-5 where only the order of additions differs; 0.02 where vectors are rounded to bfloat16 on the way

Weights and caches in fewer bits are widened for the definition: what is compared is the arithmetic, not the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from backends import Backend, get
from backends.quantised import Quantised, quantise
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.attention_parts import attention_part, merge_parts
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.moe import experts, route, sigmoid_gate
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.config import Config
from tinyqwen.kv_cache import BFLOAT16, KV_FORMATS, KVCache, Scaled, rounded
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling, sample
from tinyqwen.step import Span, make_step
from tinyqwen.weights import Node, random_weights, tree

NUMPY = Backend()
SMALL = Config(96, 160, 2, 14, 1300, num_key_value_heads=2, head_dim=64)
ORDER, ROUNDED = 1e-5, 0.02
IN: dict[str, Callable[[np.ndarray], Any]] = {
    "f32": lambda x: x,
    "bf16": lambda x: x.astype(BFLOAT16),
    "int8": lambda x: quantise(x, 8),
    "int4": lambda x: quantise(x, 4),
}
KEPT_IN: dict[str, Callable[[np.ndarray], Any]] = {**IN, "int8": lambda x: Scaled(*rounded(x))}


class Case(NamedTuple):
    """An operation, what it is given, and how far off it may be."""

    name: str
    operation: Callable
    arrays: tuple
    settings: dict
    allowed: float = ORDER


def compared(backend: Any, cases: Iterator[Case]) -> Iterator[dict]:
    """A row for each case: kernel, error, allowed, and why, if it could not run."""
    for case in cases:
        row: dict[str, Any] = {"kernel": case.name, "allowed": case.allowed}
        try:
            row["error"] = error_of(backend, case)
            row["fine"] = bool(row["error"] <= case.allowed)  # NaN is not
        except Exception as error:
            row.update(fine=False, why=f"{type(error).__name__}: {error}"[:300])
        yield row


def error_of(backend: Any, case: Case) -> float:
    expected = flat(case.operation(NUMPY, *(wide(x) for x in case.arrays), **case.settings))
    found = flat(case.operation(backend, *(there(backend, x) for x in case.arrays), **case.settings))
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        seen = np.isfinite(one)  # the weight of what saw nothing is minus infinity
        if not np.array_equal(seen, np.isfinite(other)):
            return float("nan")
        off = np.abs(other[seen] - one[seen]).max(initial=0) / max(1e-30, np.abs(one[seen]).max(initial=0))
        worst = max(worst, float(off))
    return worst


# ---- arrays here and there ----


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of lists, tuples and nodes with each array changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(each(item, change) for item in value)
    if isinstance(value, (Node, SimpleNamespace)):
        return type(value)(**{name: each(item, change) for name, item in vars(value).items()})
    return change(value) if isinstance(value, (np.ndarray, Quantised, Scaled)) else value


def wide(value: Any) -> Any:
    """In float32, but for whole numbers."""
    return each(value, lambda x: x if x.dtype == np.int64 else x.astype(np.float32))


def there(backend: Any, value: Any) -> Any:
    xp = backend.xp

    def move(x: Any) -> Any:
        if isinstance(x, Quantised):
            return Quantised(x.bits, x.shape, xp.asarray(x.values), xp.asarray(x.scales))
        return Scaled(xp.asarray(x.values), xp.asarray(x.scales)) if isinstance(x, Scaled) else xp.asarray(x)

    return each(value, move)


def flat(value: Any) -> list[np.ndarray]:
    """All arrays of a result, on the host."""
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in flat(item)]
    return [np.asarray(value.get() if hasattr(value, "get") else value)]


# ---- the cases ----


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def cases(config: Config, longest: int = 5000, prompt: int = 300) -> Iterator[Case]:
    """Of a model's sizes; a cache holds up to `longest` keys, and a prompt has so many tokens."""
    D, F, K = config.hidden_size, config.intermediate_size, config.head_dim
    yield Case("rms_norm", rms_norm, (normal(3, D), normal(D)), {"eps": 1e-6})
    yield Case("add", add, (normal(3, D), normal(3, D)), {})
    yield Case("swiglu", swiglu, (normal(3, F), normal(3, F)), {})
    yield Case("sigmoid_gate", sigmoid_gate, (normal(3, 1), normal(3, D)), {})
    position_T = np.array([0, 1, longest, 32767])
    angles = rope_tables(NUMPY, position_T, head_dim=K, theta=config.rope_theta)
    yield Case("rope", rope, (normal(4, 5, K), *angles), {})
    yield Case("rope_tables", rope_tables, (position_T,), {"head_dim": K, "theta": config.rope_theta}, 1e-3)
    for format in IN:
        yield Case(f"take_rows {format}", take_rows, (IN[format](normal(101, D)), np.array([100, 0, 7])), {})
        for T in (1, 5, 20, 40):
            for I in (D, F):  # noqa: E741
                weight, allowed = IN[format](normal(1027, I)), ROUNDED if T == 40 and format != "f32" else ORDER
                yield Case(f"linear {format} {T} x {I}", linear, (normal(T, I), weight, normal(1027)), {}, allowed)
    yield from attentions(config, longest, prompt)
    yield from choices(config)
    for format, kv in (("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")):
        yield Case(f"two layers {format}, cache {kv}", layers, (weights_in(config, format), config, kv), {}, 0.05)


def attentions(config: Config, longest: int = 5000, prompt: int = 300) -> Iterator[Case]:
    H, G, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def keys(format: str, lengths: list[int]) -> list:
        return [KEPT_IN[format](normal(G, S, K)) for S in lengths]

    for format in KV_FORMATS:
        for name, new, past in (
            ("one", [1], [longest]), ("few", [3], [longest]), ("sixteen", [1] * 16, [99 * n for n in range(16)]),
            ("a prompt", [prompt], [77]), ("a prompt and others", [70, 1, 2], [0, longest, 5]),
        ):  # fmt: skip
            stops = np.cumsum(new).tolist()
            spans = tuple(Span(stop - T, stop, None) for T, stop in zip(new, stops))
            kv = keys(format, [T + S for T, S in zip(new, past)])
            allowed = ROUNDED if format == "bf16" and name.startswith("a prompt") else ORDER
            for window in (None, 100):
                arrays, settings = (normal(stops[-1], H, K), kv, kv), {"spans": spans, "window": window}
                yield Case(f"attention {format} {name}, window {window}", attention, arrays, settings, allowed)
        (kv_GSK,) = keys(format, [200])
        for T, before in ((1, 500), (40, -10)):
            part, allowed = (normal(T, H, K), kv_GSK, kv_GSK), ROUNDED if format == "bf16" and T > 1 else ORDER
            yield Case(f"attention_part {format} {T}", attention_part, part, {"past": before}, allowed)
    outs, lses = [normal(5, H, K) for _ in range(3)], [normal(5, H), np.full((5, H), -np.inf, np.float32), normal(5, H)]
    yield Case("merge_parts", merge_parts, (outs, lses), {})


def choices(config: Config) -> Iterator[Case]:
    """Of experts and of tokens."""
    D, M, E = config.hidden_size, 352, 16
    for format in IN:
        some = [
            SimpleNamespace(**{f"{name}_proj": SimpleNamespace(weight=IN[format](normal(*shape)))
                               for name, shape in (("gate", (M, D)), ("up", (M, D)), ("down", (D, M)))})
            for _ in range(E)
        ]  # fmt: skip
        chosen_TA = np.array([[3, 0, 7], [7, 15, 1]])
        yield Case(f"experts {format}", experts, (normal(2, D), chosen_TA, normal(2, 3), some), {})
    yield Case("route", route, (normal(9, D), normal(E, D)), {"top_k": 4, "normalise": True})
    logits_V, seen_N = 3 * normal(config.vocab_size), np.arange(0, 999, 7) % config.vocab_size
    for sampling in (Sampling(), Sampling(True, 0.7, 20, 0.8, 0.01, 1.1), Sampling(repetition_penalty=1.2)):
        for uniform in (0.02, 0.98):
            settings = {"sampling": sampling, "uniform": uniform}
            name = f"sample{', drawn' * sampling.do_sample}, penalty {sampling.repetition_penalty}"
            yield Case(name, sample, (logits_V, seen_N), settings, 0.0)


def weights_in(config: Config, format: str) -> Node:
    """Random weights of its first two layers, large enough that attention chooses."""
    tensors = random_weights(shallow(config), scale=0.05)
    return tree({name: IN[format](x) if x.ndim == 2 else x for name, x in tensors.items()})


def shallow(config: Config) -> Config:
    return replace(config, num_hidden_layers=2, vocab_size=1000, layer_types=())


def layers(backend: Any, weights: Node, config: Config, kv: str) -> list:
    """Logits of a prompt, and of three tokens behind it."""
    config = shallow(config)
    cache = KVCache(backend, config, kv if backend is not NUMPY else "f32")
    steps = [list(range(40)), [7], [8], [9]]
    return [forward(backend, config, weights, make_step([(ids, cache)])) for ids in steps]


def main() -> int:
    wrong = [row for row in compared(get("cuda"), cases(SMALL, longest=150, prompt=20)) if not row["fine"]]
    print("\n".join(map(str, wrong)) or "all fine")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
