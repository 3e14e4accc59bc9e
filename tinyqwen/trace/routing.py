"""Which experts each token went to, in every sparse layer, out of what `capture` kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyqwen.trace.capture import CapturedStep, missing


def routers(path: str, operation: str) -> bool:
    """What `routing` needs: the choices, all experts' probabilities, and the shared expert's gate."""
    return operation == "route" or path.endswith((".mlp.gate.softmax", ".mlp.shared_expert_gate"))


@dataclass
class Routing:
    """The router's decisions in one layer, for all tokens of all steps, end to end.

    sequence_T, position_T   whose token it is, and its place there
    token_T                  ids
    expert_TA, weight_TA     the chosen experts, the heaviest first, and their weights, as `route` returned them
    probability_TE           of all experts, before the choice
    gate_T                   how much of the shared expert is added, in (0, 1)
    """

    layer: int
    sequence_T: np.ndarray
    position_T: np.ndarray
    token_T: np.ndarray
    expert_TA: np.ndarray
    weight_TA: np.ndarray
    probability_TE: np.ndarray
    gate_T: np.ndarray

    @property
    def margin_T(self) -> np.ndarray:
        """How much likelier the last chosen expert was than the first left out; NaN where none is left out."""
        A = self.expert_TA.shape[1]
        sorted_TE = -np.sort(-self.probability_TE, axis=-1)
        if sorted_TE.shape[1] == A:
            return np.full(len(sorted_TE), np.nan)
        return sorted_TE[:, A - 1] - sorted_TE[:, A]

    @property
    def tied_T(self) -> np.ndarray:
        """Whether the choice was a tie, decided by the lower number: another backend's rounding may decide it anew."""
        return self.margin_T == 0

    @property
    def load_E(self) -> np.ndarray:
        """How many times each expert was chosen."""
        return np.bincount(self.expert_TA.ravel(), minlength=self.probability_TE.shape[1])


def routing(steps: Sequence[CapturedStep]) -> dict[int, Routing]:
    """Every sparse layer's decisions. Empty for a dense model."""
    columns: dict[int, list[tuple]] = {}
    for step in steps:
        assert step.step is not None
        sequence_T = np.concatenate([np.full(part.stop - part.start, part.sequence) for part in step.parts])
        found = {one.path: one.result for one in step.kept}
        for one in step.kept:
            if one.operation != "route":
                continue
            if f"{one.path}.softmax" not in found:
                raise missing("the router's probabilities")
            mlp = one.path.removesuffix(".gate")
            gate_T = 1 / (1 + np.exp(-found[f"{mlp}.shared_expert_gate"][:, 0]))
            row = (sequence_T, step.step.position_T, step.step.token_T, *one.result, found[f"{one.path}.softmax"])
            columns.setdefault(int(one.path.split(".")[1]), []).append((*row, gate_T))
    return {layer: Routing(layer, *map(np.concatenate, zip(*rows))) for layer, rows in sorted(columns.items())}
