"""AdamW: each number takes steps of about the learning rate, whatever the size of its gradients.

    m      <- b1 m + (1 - b1) g                       the gradient, smoothed over some 1 / (1 - b1) steps
    v      <- b2 v + (1 - b2) g^2                     its square, smoothed over more
    delta   = - lr mhat / (sqrt(vhat) + eps)          hats: divided by 1 - b^step, as both began at 0
    theta  <- (1 - lr decay) theta + delta            decay of matrices only: not of norms and biases

The decay is *decoupled*: it is no part of the gradient, so that it pulls all parameters alike. Qwen2 trains with decay
0.1 and gradients clipped to a global norm of 1. b2 is 0.95 here, not Adam's 0.999, as is usual for language models.

Online merging (`online_merging.py`) changes delta on its way to theta, and nothing else: so it is an argument here.

Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2; torch.optim.AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.interface import Cost, nbytes, operation, shape_only

Tree = Mapping[str, Any]


@dataclass
class AdamState:
    """All that AdamW remembers: how many steps it took, and m and v of every parameter."""

    step: int
    m: dict[str, Any]
    v: dict[str, Any]


def start(backend, parameters: Tree) -> AdamState:
    """The state before the first step."""
    zeros = [{name: backend.xp.zeros_like(theta) for name, theta in parameters.items()} for _ in range(2)]
    return AdamState(0, *zeros)


def clip(backend, gradients: Tree, limit: float) -> float:
    """Scale all gradients by one factor, in place, so that their global norm is `limit` at most; returns what it was.

    >>> import numpy as np; from backends import get
    >>> gradients = {"a": np.float32([3]), "b": np.float32([[4]])}
    >>> clip(get("numpy"), gradients, 1.0), gradients["b"].round(3)
    (5.0, array([[0.8]], dtype=float32))

    Errors: FloatingPointError for gradients that are not finite: a step with them would destroy the model.
    """
    squares = [float(backend.xp.vdot(gradient, gradient)) for gradient in gradients.values()]
    norm = math.sqrt(sum(squares))
    if not math.isfinite(norm):
        bad = [name for name, square in zip(gradients, squares) if not math.isfinite(square)]
        raise FloatingPointError(f"the gradients of {len(bad)} tensors are not finite, the first is {bad[0]}")
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / (norm + 1e-6)
    return norm


def adamw(
    backend, parameters: Tree, gradients: Tree, state: AdamState, *, lr: float, betas=(0.9, 0.95), eps: float = 1e-8,
    weight_decay: float = 0.1, merge: Callable[[str, Any], Any] | None = None,
) -> None:  # fmt: skip
    """One step: parameters and state change in place.

    merge   (name, delta) -> what to add to that parameter instead

    >>> import numpy as np; from backends import get
    >>> backend, parameters = get("numpy"), {"x": np.float32([1, 1, 1])}
    >>> state = start(backend, parameters)
    >>> adamw(backend, parameters, {"x": np.float32([5, -0.1, 0])}, state, lr=0.01); parameters["x"]
    array([0.99, 1.01, 1.  ], dtype=float32)
    """
    state.step += 1
    for name, theta in parameters.items():
        if theta.ndim > 1:
            theta *= 1 - lr * weight_decay
        moments = state.m[name], state.v[name]
        delta = adam(backend, gradients[name], *moments, step=state.step, lr=lr, betas=betas, eps=eps)
        theta += merge(name, delta) if merge else delta


@operation
def adam(backend, gradient, m, v, *, step, lr, betas, eps):
    """Adam's delta. m and v move on, in place; `step` counts from 1."""
    b1, b2 = betas
    m += (1 - b1) * (gradient - m)
    v *= b2
    v += (1 - b2) * gradient * gradient
    delta = m * (-lr / (1 - b1**step))
    delta /= backend.xp.sqrt(v) / math.sqrt(1 - b2**step) + eps
    return delta


@adam.cost
def _(gradient, m, v, *, step, lr, betas, eps):
    return Cost(shape_only(m.shape, m.dtype), 12 * m.size, read=nbytes(gradient, m, v), written=3 * m.nbytes)
