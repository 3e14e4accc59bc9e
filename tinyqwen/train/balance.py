"""The load-balancing loss of a mixture of experts: without it a few experts win early, and get all tokens ever after.

    p[n]   = softmax of row n's router logits, a row for each token of each sparse layer, N in all
    f[e]   = how many of the rows chose expert e, as a fraction
    P[e]   = mean over the rows of p[n, e]
    loss   = E * sum over e of f[e] P[e]                        A experts a token: A at balance, up to E at worst
    d loss / d logits[n, e] = E / N * p[n, e] (f[e] - sum over e' of f[e'] p[n, e'])

f counts, and has no slope; so the loss pushes down the probability of what was chosen often. It is added to the loss
of the text with a small coefficient (`router_aux_loss_coef`, 0.001). All layers are pooled, as transformers does it, so
that one layer's imbalance can cancel another's.

Source: Fedus et al. 2021, "Switch Transformers", equations 4 to 6; transformers, qwen2_moe, load_balancing_loss_func.
"""

from __future__ import annotations

from typing import Any

from backends.interface import Backend, Operation, Wrapper
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.moe import route


class Balanced(Wrapper):
    """Watches the routers in the forward pass, and adds this loss's gradient to theirs on the way back.

    It stands inside of the gradient wrapper. For each step: the forward pass, `loss()`, `backward`, `clear()`.

        balanced = Balanced(backend, coefficient)
        tape = Gradient(balanced, parameters)

    coefficient   what the loss is multiplied by; `loss()` is before that
    """

    def __init__(self, inner: Backend, coefficient: float):
        super().__init__(inner)
        self.coefficient = coefficient
        self.clear()

    def clear(self) -> None:
        """Forget the routers seen: a new step begins."""
        self.rows, self.watching = 0, True
        self.chosen_E: Any = 0  # sums over the rows
        self.probability_E: Any = 0

    def loss(self) -> float:
        """The loss of all routers seen. From now on, until `clear`, they may run again and are not counted twice."""
        self.watching = False
        if not self.rows:
            return 0.0
        return float(len(self.chosen_E) * (self.chosen_E / self.rows) @ (self.probability_E / self.rows))

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        out = super().run(operation, arrays, settings, door)
        if operation is route and self.watching:
            self.count(self.probabilities(*arrays), out[0])
        if operation is route.gradient_of and not self.watching:
            return self.with_balance(out, *arrays[1:])
        return out

    def probabilities(self, x_TD, gate_ED):
        return softmax(self.inner, linear(self.inner, x_TD, gate_ED))

    def count(self, probability_TE, expert_TA) -> None:
        self.rows += len(expert_TA)
        self.chosen_E = self.chosen_E + self.xp.bincount(expert_TA.ravel(), minlength=probability_TE.shape[1])
        self.probability_E = self.probability_E + probability_TE.sum(axis=0)

    def with_balance(self, gradients, x_TD, gate_ED):
        """The router's gradients, with those of this loss added."""
        p_TE, (E, _) = self.probabilities(x_TD, gate_ED), gate_ED.shape
        f_E = (self.chosen_E / self.rows).astype(self.dtype)
        d_logits_TE = p_TE * (f_E - (p_TE * f_E).sum(axis=1, keepdims=True))
        d_logits_TE *= self.coefficient * E / self.rows
        d_x_TD, d_gate_ED, _ = linear.gradient_of(self.inner, d_logits_TE, x_TD, gate_ED)
        return gradients[0] + d_x_TD, gradients[1] + d_gate_ED
