"""Weights to begin with: random, and of such a size that every layer's output is about as large as its input.

    embedding, untied head         N(0, initializer_range)
    matrices                       N(0, 1 / inputs)
    o_proj and down_proj           N(0, 1 / inputs / 2L): what 2L of them add to the residual stream stays near 1
    norms 1, biases 0

Source: Radford et al. 2019 (GPT-2), section 2.3, for the factor of the residual layers.
"""

from __future__ import annotations

import numpy as np

from tinyqwen.config import Config
from tinyqwen.weights import fill


def initial_weights(config: Config, seed: int) -> dict[str, np.ndarray]:
    """The tensors of that config, in float32.

    >>> config = Config(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, vocab_size=9)
    >>> tensors = initial_weights(config, seed=0)
    >>> [round(float(tensors[f"model.layers.1.mlp.{name}_proj.weight"].std()), 2) for name in ("up", "down")]
    [0.13, 0.04]
    """
    rng = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, 1 if "norm" in name else 0, np.float32)
        scale = shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale *= (2 * config.num_hidden_layers) ** -0.5
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            scale = config.initializer_range
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    return fill(config, values)
