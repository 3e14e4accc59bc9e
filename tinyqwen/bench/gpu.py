"""What a GPU does with a model, beside what it could: `bench --backend cuda`.

Weights are random and made on the device: a product takes as long with any numbers, so no size needs a download. What
is timed is the program's own loop, `tinyqwen.generate`, with everything in it.

    read    a kernel that only reads                     the ceiling of decoding
    peak    a large product in bfloat16                  the ceiling of a prompt
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from backends.quantised import Quantised, stored_shapes
from tinyqwen.bench.contestants.task import some_ids
from tinyqwen.bench.limits import Limits, work
from tinyqwen.config import Config
from tinyqwen.formats import DTYPES, format_of, weight_bytes
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import BFLOAT16, KVCache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling
from tinyqwen.step import make_step
from tinyqwen.weights import Node, fill, tree

SIZES = "0.5B", "1.5B", "7B", "57B-A14B"
BLOCK = 1 << 20  # random numbers, repeated: more would only take longer to make
WARM = 16  # tokens before the clock starts: kernels, graphs


def ceilings(backend: Any, quick: bool = False) -> Limits:
    """This device's limits. quick: small arrays, to try the code and not the device."""
    from backends.cuda.ceilings import product_peak, read_bandwidth

    read = read_bandwidth(backend, 1 << 20, 1) if quick else read_bandwidth(backend)
    peak = product_peak(backend, 64, 1) if quick else product_peak(backend)
    return Limits(read, dict.fromkeys(("f32", "bf16", "int8", "int4"), peak))  # all are multiplied in bfloat16


def weights_on(backend: Any, config: Config, format: str) -> Node:
    """Random weights of that config on the device; norms are 1."""
    xp, rng = backend.xp, np.random.default_rng(0)
    backend.enter()
    noise = xp.asarray((0.02 * rng.standard_normal(BLOCK, dtype=np.float32)).astype(BFLOAT16))
    bits = xp.asarray(rng.integers(0, 256, BLOCK, dtype=np.uint8))

    def repeated(block: Any, shape: tuple[int, ...]) -> Any:
        out = xp.empty(int(np.prod(shape)), block.dtype)
        for start in range(0, out.size, BLOCK):
            piece = out[start : start + BLOCK]
            piece[...] = block[: piece.size]
        return out.reshape(shape)

    def make(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return xp.ones(shape, np.float32) if "norm" in name else repeated(noise, shape).astype(np.float32)
        kind = format_of(name, shape, format)
        if kind in ("int8", "int4"):
            number = 8 if kind == "int8" else 4
            values, scales = stored_shapes(number, shape)
            small = repeated(noise, scales).astype(np.float32) * 0.01  # CuPy has few loops for bfloat16
            return Quantised(number, (shape[0], shape[1]), repeated(bits, values), small.astype(BFLOAT16))
        return repeated(noise, shape).astype(DTYPES[kind], copy=False)

    return tree(fill(config, make))


def decode(backend: Any, config: Config, weights: Node, depth: int, tokens: int, sequences: int = 1) -> float:
    """Tokens a second of all sequences, each behind a text of `depth` tokens, the host's part included."""
    running = [
        Running(ids, KVCache(backend, config, "bf16"), Sampling(), depth + tokens + 2 * WARM)
        for ids in some_ids(config.vocab_size, sequences, max(depth, 1)).tolist()
    ]
    steps = (event for event in generate(backend, config, weights, running) if event.token is not None)
    for _ in range(WARM * sequences):
        next(steps)
    start = time.perf_counter()
    for _ in range(tokens * sequences):
        next(steps)
    taken = time.perf_counter() - start
    steps.close()
    return tokens * sequences / taken


def prefill(backend: Any, config: Config, weights: Node, tokens: int, rounds: int = 3) -> float:
    """Tokens a second of a prompt, read in one step into an empty cache; the best of some rounds."""
    ids, best = some_ids(config.vocab_size, 1, tokens)[0].tolist(), float("inf")
    for _ in range(rounds + 1):
        cache = KVCache(backend, config, "bf16")
        step = make_step([(ids, cache)])
        start = time.perf_counter()
        int(forward(backend, config, weights, step).argmax())
        best = min(best, time.perf_counter() - start)
    return tokens / best


def measure(
    backend: Any, name: str, config: Config, format: str, limits: Limits,
    depths: tuple[int, ...] = (0, 2048), prompts: tuple[int, ...] = (512, 2048), tokens: int = 256,
    report: Callable[[str], None] = lambda text: None, together: tuple[int, ...] = (),
) -> Iterator[dict]:  # fmt: skip
    """A row for each question: model, format, what, tokens_s, ceiling (tokens a second), share."""
    needed, free = weight_bytes(config, format), backend.free_bytes()
    if 1.05 * needed > free:
        why = f"{needed / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB are free"
        yield {"model": name, "format": format, "what": "left out", "why": why}
        return
    report(f"{name} {format}: random weights")
    weights = weights_on(backend, config, format)

    def row(what: str, speed: float, floor: float) -> dict:
        found = {"model": name, "format": format, "what": what, "tokens_s": speed}
        return {**found, "ceiling": 1 / floor, "share": speed * floor}

    for depth in depths:
        report(f"{name} {format}: decode behind {depth}")
        floor = work(config, format, "bf16", 1, depth + WARM + tokens // 2).seconds(limits, format)
        yield row(f"decode behind {depth}", decode(backend, config, weights, depth, tokens), floor)
    for sequences in together:
        report(f"{name} {format}: {sequences} sequences together")
        floor = work(config, format, "bf16", 1, WARM + tokens // 2, sequences).seconds(limits, format) / sequences
        speed = decode(backend, config, weights, 0, tokens, sequences)
        yield row(f"{sequences} together", speed, floor)
    for prompt in prompts:
        report(f"{name} {format}: prompt of {prompt}")
        floor = work(config, format, "bf16", prompt).seconds(limits, format) / prompt
        yield row(f"prompt of {prompt}", prefill(backend, config, weights, prompt), floor)
