"""Muon: a matrix takes steps that turn all directions alike. An optional chapter: Qwen2 was trained with AdamW.

    b      <- momentum b + (1 - momentum) g
    u       = (1 - momentum) g + momentum b                       (Nesterov: a look ahead)
    o       = U V^T  where  u = U S V^T                           the nearest matrix that turns and does not stretch
    theta  <- (1 - lr decay) theta - lr sqrt(max(1, rows / columns)) o

A gradient of a matrix is mostly a few strong directions; Adam scales each number by itself and leaves that so. Here the
weak directions count as much. The singular value decomposition is not needed: five steps of the polynomial

    x  <-  3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x       from  x = u / |u|

push every singular value to between 0.7 and 1.2, which is near enough. They cost about 5 min(rows, columns) / tokens of
the step's own products. For hidden matrices only: embedding, head, norms and biases stay with AdamW.

Source: Jordan et al. 2024, "Muon", and KellerJordan/Muon at 857d1ad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def is_hidden(name: str, theta) -> bool:
    """Whether Muon is for this parameter.

    >>> import numpy as np
    >>> [is_hidden(f"model.{name}.weight", np.ones((4, 4))) for name in ("layers.0.mlp.up_proj", "embed_tokens")]
    [True, False]
    """
    return theta.ndim == 2 and min(theta.shape) > 1 and "embed_tokens" not in name and "lm_head" not in name


def muon(
    backend, parameters: Mapping[str, Any], gradients: Mapping[str, Any], momenta: Mapping[str, Any], *,
    lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """One step: parameters and momenta (zeros at first) change in place. All are hidden matrices."""
    for name, theta in parameters.items():
        gradient, b = gradients[name], momenta[name]
        b += (1 - momentum) * (gradient - b)
        turned = orthogonal(backend, (1 - momentum) * gradient + momentum * b)
        theta *= 1 - lr * weight_decay
        theta -= lr * math.sqrt(max(1, theta.shape[0] / theta.shape[1])) * turned


def orthogonal(backend, u_OI, rounds: int = 5):
    """U V^T of a matrix U S V^T, nearly: singular values come out between 0.7 and 1.2, unless they were nearly 0.

    >>> import numpy as np; from backends import get
    >>> orthogonal(get("numpy"), np.float32([[0, 100], [1, 0]])).round(1)
    array([[0. , 0.7],
           [0.7, 0. ]], dtype=float32)
    """
    x_OI = u_OI / (math.sqrt(float(backend.xp.vdot(u_OI, u_OI))) + 1e-7)
    if x_OI.shape[0] > x_OI.shape[1]:  # the smaller square
        return orthogonal(backend, x_OI.T, rounds).T
    for _ in range(rounds):
        square_OO = x_OI @ x_OI.T
        x_OI = 3.4445 * x_OI + (-4.7750 * square_OO + 2.0315 * square_OO @ square_OO) @ x_OI
    return x_OI
