"""Upcycling: a mixture of experts that begins with what a dense model knows.

For E experts of width M from a feed-forward part of width F:

    1. replicate       ceil(E M / F) copies
    2. shuffle         in each copy the F hidden units change places: gate and up rows and down columns alike, so that
                       each copy still computes the same
    3. slice           all copies laid end to end, M units to an expert; what is left over is dropped
    4. re-initialise   a part of each expert (half, in Qwen2), so that experts have something to become different in

The copies are laid end to end *before* they are cut: the 57B-A14B has E = 64, M = 2560 and F = 18944, of which each of
nine copies alone would give seven experts, 63 in all. "50 % of parameters" can be read as units or as single numbers;
both are here. New numbers are normal with the mean and deviation of the old ones.

How the shared expert begins is not published. Here, where it is wide enough, it is the dense feed-forward part with its
`down_proj` doubled, because its gate begins half open: before anything is trained it computes what the dense one did. A
narrower one begins with as many of the units. The routed experts then add to that; `scale` says how much:

    1              as published
    E F / (A M)    with a fresh router (p = 1/E), A of E experts make up one dense part on average; `scale_for_dense`

Source: Qwen2 technical report, section 2.2.2; Nakamura et al. 2025, "Drop-Upcycling" (units); He et al. 2024,
"Upcycling Large Language Models into Mixture of Experts" (scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tinyqwen.config import Config
from tinyqwen.errors import UsageError

DICE = {"units": "hidden units, whole", "entries": "single numbers"}


@dataclass(frozen=True)
class Recipe:
    """What the experts shall be.

    experts         E
    per_token       A, how many of them a token uses
    width           M
    shared_width    of the shared expert; 0: as the dense feed-forward part
    reinitialised   the fraction that begins anew
    by              units or entries
    scale           what the routed experts' down_proj is multiplied by

    Errors: UsageError for what cannot be.
    """

    experts: int = 8
    per_token: int = 2
    width: int = 0
    shared_width: int = 0
    reinitialised: float = 0.5
    by: str = "units"
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.per_token <= self.experts:
            raise UsageError(f"a token can use 1 to {self.experts} of {self.experts} experts, not {self.per_token}")
        if min(self.width, self.shared_width) < 0:
            raise UsageError(f"widths must be at least 0, are {self.width}, and {self.shared_width} of the shared one")
        if not 0 <= self.reinitialised <= 1 or not math.isfinite(self.scale) or self.by not in DICE:
            raise UsageError(
                f"reinitialised must be from 0 to 1 (is {self.reinitialised}), by one of {', '.join(DICE)}"
            )

    def for_model(self, config: Config, **changes) -> Recipe:
        """This recipe with the widths that were left to the model."""
        F = config.intermediate_size
        return replace(self, width=self.width or F, shared_width=self.shared_width or F, **changes)


def scale_for_dense(config: Config, recipe: Recipe) -> float:
    """The scale at which the routed experts alone make up the dense part, on average over a router that knows nothing.

    >>> config = Config(hidden_size=8, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> scale_for_dense(config, Recipe(experts=8, per_token=2, width=32))
    8.0
    """
    return recipe.experts * config.intermediate_size / (recipe.per_token * recipe.width)


class Units(NamedTuple):
    """Hidden units of a feed-forward part: a row of gate, a row of up and a column of down for each."""

    gate_ND: np.ndarray
    up_ND: np.ndarray
    down_DN: np.ndarray

    def taken(self, unit_N) -> Units:
        return Units(self.gate_ND[unit_N], self.up_ND[unit_N], self.down_DN[:, unit_N])


def upcycle(config: Config, tensors: Mapping[str, np.ndarray], recipe: Recipe) -> tuple[Config, dict[str, np.ndarray]]:
    """The mixture of experts, as config and tensors. All else is as it was; routers begin small and random.

    >>> from tinyqwen.weights import random_weights, tensor_shapes
    >>> config = Config(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> sparse, tensors = upcycle(config, random_weights(config), Recipe(experts=4, per_token=2, width=6))
    >>> sparse.model_type, {name: x.shape for name, x in tensors.items()} == tensor_shapes(sparse)
    ('qwen2_moe', True)

    Errors: UsageError if the model has experts already.
    """
    if config.num_experts:
        raise UsageError("the model is a mixture of experts already; upcycling begins with a dense one")
    recipe = recipe.for_model(config)
    sparse = replace(
        config, model_type="qwen2_moe", num_experts=recipe.experts, num_experts_per_tok=recipe.per_token,
        moe_intermediate_size=recipe.width, shared_expert_intermediate_size=recipe.shared_width,
    )  # fmt: skip
    rng, out = np.random.default_rng(recipe.seed), {}
    for name, tensor in tensors.items():
        if ".mlp." not in name:
            out[name] = tensor.copy()
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}.mlp"
        dense = Units(*(tensors[f"{at}.{name}_proj.weight"] for name in ("gate", "up", "down")))
        small = np.float32(config.initializer_range)
        out[f"{at}.gate.weight"] = small * rng.standard_normal((recipe.experts, config.hidden_size), np.float32)
        out[f"{at}.shared_expert_gate.weight"] = np.zeros((1, config.hidden_size), np.float32)
        for number, expert in enumerate(expert_units(dense, recipe, rng)):
            name_all(out, f"{at}.experts.{number}", expert)
        name_all(out, f"{at}.shared_expert", shared_units(dense, recipe.shared_width, rng))
    return sparse, {name: np.ascontiguousarray(tensor) for name, tensor in out.items()}


def expert_units(dense: Units, recipe: Recipe, rng: np.random.Generator) -> list[Units]:
    """The routed experts: replicated, shuffled, sliced, and in part begun anew."""
    F, E, M = len(dense.gate_ND), recipe.experts, recipe.width
    unit_N = np.concatenate([rng.permutation(F) for _ in range(math.ceil(E * M / F))])
    cut = [dense.taken(unit_N[e * M : (e + 1) * M]) for e in range(E)]
    scaled = [expert._replace(down_DN=expert.down_DN * np.float32(recipe.scale)) for expert in cut]
    return [begun_anew(expert, recipe, rng) for expert in scaled]


def begun_anew(expert: Units, recipe: Recipe, rng: np.random.Generator) -> Units:
    """A part of the expert is drawn from a normal distribution like that of its own numbers."""
    M = len(expert.gate_ND)
    new_M = np.zeros(M, bool)
    new_M[rng.permutation(M)[: round(recipe.reinitialised * M)]] = True

    def drawn(matrix, new):
        if recipe.by == "entries":
            new = rng.random(matrix.shape) < recipe.reinitialised
        fresh = matrix.mean() + matrix.std() * rng.standard_normal(matrix.shape, np.float32)
        return np.where(new, fresh, matrix).astype(np.float32)

    return Units(drawn(expert.gate_ND, new_M[:, None]), drawn(expert.up_ND, new_M[:, None]),
                 drawn(expert.down_DN, new_M))  # fmt: skip


def shared_units(dense: Units, width: int, rng: np.random.Generator) -> Units:
    """The shared expert: the dense part, twice as strong as its gate is half open; units beyond it add nothing yet."""
    F, D = len(dense.gate_ND), dense.gate_ND.shape[1]
    if width < F:
        dense = dense.taken(np.sort(rng.permutation(F)[:width]))
    more = max(0, width - F)
    rows = [rng.standard_normal((more, D), np.float32) * matrix.std() for matrix in dense[:2]]
    gate_ND, up_ND = (np.concatenate([matrix, row]) for matrix, row in zip(dense[:2], rows))
    return Units(gate_ND, up_ND, np.concatenate([2 * dense.down_DN, np.zeros((D, more), np.float32)], axis=1))


def name_all(out: dict[str, np.ndarray], prefix: str, units: Units) -> None:
    for name, matrix in zip(("gate", "up", "down"), units):
        out[f"{prefix}.{name}_proj.weight"] = matrix
