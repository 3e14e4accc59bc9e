"""How fast is the plain NumPy path, and how much of its time are the matrix products themselves?

    python -m tinyqwen.bench.plain [--size 0.5B] [--rounds 5]

Random weights of the published shape, in float32. Prediction: decoding reads every weight once, so a token takes
weight bytes / read bandwidth; a prompt is matrix products, so its time is theirs plus little. Both are measured in
turns with the thing that they are compared with, and medians are printed, because machines are noisy.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import backends
from backends import Wrapper, nbytes
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

PRODUCTS = ("linear", "scores", "mix")


class Recording(Wrapper):
    """Keeps the shapes of every matrix product that passes the door."""

    def __init__(self, inner):
        super().__init__(inner)
        self.products: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def run(self, operation, arrays, settings, door=None):
        if operation.name in PRODUCTS:
            left, right = arrays[0], arrays[1]
            if operation.name != "linear":  # R query heads share one product
                G, R, T, width = left.shape
                left = np.broadcast_to(np.float32(0), (G, R * T, width))
            if operation.name == "mix":
                right = right.swapaxes(1, 2)
            self.products.append((left.shape, right.shape))
        return super().run(operation, arrays, settings, door)


def products_alone(products) -> float:
    """Seconds that NumPy takes for these products left @ right^T on arrays that exist already."""
    ready = {shape: np.ones(shape, np.float32) for pair in products for shape in pair}
    start = time.perf_counter()
    for left, right in products:
        ready[left] @ ready[right].swapaxes(-1, -2)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5B", choices=SIZES)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to decode in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    backend, config = backends.get("numpy"), SIZES[arguments.size].config()
    print(f"making random weights of the {arguments.size} ...", flush=True)
    tensors = random_weights(config)
    weights, prompt = tree(tensors), [n % 1000 for n in range(arguments.prompt)]

    recording = Recording(backend)
    forward(recording, config, weights, make_step([(prompt, KVCache(backend, config))]))  # warm-up, too

    prefill, products, decode, reading = [], [], [], []
    for _ in range(arguments.rounds):
        cache = KVCache(backend, config)
        start = time.perf_counter()
        forward(backend, config, weights, make_step([(prompt, cache)]))
        prefill.append(time.perf_counter() - start)
        products.append(products_alone(recording.products))
        for _ in range(arguments.tokens):
            start = time.perf_counter()
            forward(backend, config, weights, make_step([([7], cache)]))
            decode.append(time.perf_counter() - start)
        start = time.perf_counter()
        for tensor in tensors.values():
            tensor.max()  # one thread reads everything once
        reading.append(time.perf_counter() - start)

    ratio = [whole / alone for whole, alone in zip(prefill, products)]
    weight_bytes = nbytes(*tensors.values())
    token = statistics.median(decode)
    print(f"prefill of {arguments.prompt} tokens   {statistics.median(prefill):.2f} s (rounds {spread(prefill)})")
    print(f"its matrix products alone   {statistics.median(products):.2f} s (rounds {spread(products)})")
    print(f"ratio, within each round    {statistics.median(ratio):.2f} (rounds {spread(ratio)})")
    print(f"decode                      {1 / token:.1f} tokens/s, weights at {weight_bytes / token / 1e9:.1f} GB/s")
    one_thread = weight_bytes / statistics.median(reading) / 1e9
    print(f"one NumPy pass over them    {one_thread:.1f} GB/s on one thread")


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    main()
