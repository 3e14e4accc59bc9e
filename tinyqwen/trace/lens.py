"""The logit lens: what each layer would have said, had it been the last, out of what `capture` kept.

Of the last layer this is the model's own distribution. In between it is a guess that nobody trained; it works because
every layer adds to the same stream.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.interface import Backend
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.config import Config
from tinyqwen.trace.capture import CapturedStep, copies
from tinyqwen.weights import Node


def layer_outputs(path: str, operation: str) -> bool:
    """What `lens` needs."""
    return operation == "decoder_layer"


@dataclass
class Lens:
    """What each layer would have said after one token, had it been the last layer.

    position        of that token in its sequence; the answer's next one is at position + 1
    token_L         each layer's likeliest token
    probability_L   and how likely it was
    """

    sequence: int
    phase: str
    position: int
    token_L: np.ndarray
    probability_L: np.ndarray

    @property
    def flip_L(self) -> np.ndarray:
        """Where a layer says something else than the one before it."""
        return np.concatenate([[False], self.token_L[1:] != self.token_L[:-1]])


def distribution(backend: Backend, config: Config, weights: Node, x_ND):
    """The next token's probabilities, read off the residual stream: final norm, head, softmax, as the model does."""
    x_ND = rms_norm(backend, backend.xp.asarray(x_ND), weights.norm.weight, eps=config.rms_norm_eps)
    return softmax(backend, linear(backend, x_ND, weights.lm_head.weight))


def lens(
    backend: Backend, config: Config, weights: Node, steps: Sequence[CapturedStep], vocabulary: int | None = None
) -> list[Lens]:
    """One reading per token that was chosen, in order; it costs one product with the head per layer.

    vocabulary   ids from here on have no text and are never chosen
    """
    found = []
    for step in steps:
        asked = step.asked
        tops = []
        for one in step.kept if asked else []:
            if one.operation == "decoder_layer":
                probability_NV = copies(distribution(backend, config, weights, one.result))[:, :vocabulary]
                token_N = probability_NV.argmax(axis=-1)
                tops.append((token_N, probability_NV.max(axis=-1)))
        for part, row in asked:
            token_L = np.array([token_N[row] for token_N, _ in tops])
            probability_L = np.array([probability_N[row] for _, probability_N in tops])
            found.append(
                Lens(part.sequence, part.phase, part.position + part.stop - part.start - 1, token_L, probability_L)
            )
    return found
