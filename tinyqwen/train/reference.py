"""A model that does not learn: what it holds of the tokens that another one is learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backends import Backend
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.step import Step
from tinyqwen.weights import Node

Reference = Callable[[Step, np.ndarray], Any]  # of a lesson's step and tokens, log_p_N


def frozen(backend: Backend, config: Config, weights: Node) -> Reference:
    """The log-probabilities that these weights give.

    A lesson asks with the same step that it learns from. So at the start, when both models are one, the numbers are the
    same bits.
    """
    return lambda step, token_N: log_probability(backend, forward(backend, config, weights, step), token_N)
