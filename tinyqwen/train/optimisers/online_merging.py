"""The Online Merging Optimizer: each step merges with what fine-tuning had changed, so that alignment costs less skill.

    tau     = theta_sft - theta_base                the task vector: what was learnt before alignment began
    delta   = Adam's step
    theta  <- theta + F(delta) (+) F(tau)           F makes sparse, (+) merges, a is the weight of tau

    OnDARE  F keeps each number with probability p              (1-a) F(delta) + a F(tau)
    OnTIES  F keeps the fraction p of largest magnitude         x = (1-a) F(delta), y = a F(tau):
                                                                x + y where their signs agree, else the larger one

Merging the *models* after each step would merge the past again and again; the paper relaxes this to merging the step.
Note that a tau pushes along base -> SFT and beyond SFT; it does not pull back to it. Over T steps that is T a tau.
With p = 1 and a = 0 both are AdamW, bit for bit.

This is the paper's form. Its published code differs: it divides OnDARE's survivors by p (`rescale` here), draws tau's
part once instead of every step, clamps tau to +-1, lets the unweighted tau + delta elect OnTIES' signs, decays weights
after the merge, and in its mode of several steps updates one tensor only between merges.

Source: Lu et al. 2024, "Online Merging Optimizers for Boosting Rewards and Mitigating Tax in Alignment", equations 7 to
9; QwenLM/online_merging_optimizers at 9d411b8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def task_vector(finetuned: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """tau of every tensor.

    Errors: ValueError for tensors that only one of the two has, or in another shape.
    """
    for name in finetuned.keys() | base.keys():
        if name not in finetuned or name not in base or finetuned[name].shape != base[name].shape:
            raise ValueError(f"{name} is not in both models in one shape: they need a common origin")
    return {name: finetuned[name] - base[name] for name in finetuned}


def on_dare(
    task: Mapping[str, Any], rng: np.random.Generator, *, keep: float, alpha: float, rescale: bool = False
) -> Callable[[str, Any], Any]:
    """`merge` for `adamw`. keep is p, alpha is a.

    rescale   divide what is kept by p, which keeps its mean; the paper found it unstable

    >>> merge = on_dare({"x": np.float32([8, 8, 8, 8])}, np.random.default_rng(1), keep=0.5, alpha=0.25)
    >>> merge("x", np.float32([4, 4, 4, 4]))                  # 3/4 of delta, 1/4 of tau, where they are kept
    array([5., 2., 0., 0.], dtype=float32)
    """
    scale = 1 / keep if rescale else 1

    def thinned(x, weight):
        return x * (weight * scale) * (rng.random(x.shape, np.float32) < keep)

    return lambda name, delta: thinned(delta, 1 - alpha) + thinned(task[name], alpha)


def on_ties(task: Mapping[str, Any], *, keep: float, alpha: float) -> Callable[[str, Any], Any]:
    """`merge` for `adamw`.

    >>> merge = on_ties({"x": np.float32([2, -2, -20, 1])}, keep=1, alpha=0.5)
    >>> merge("x", np.float32([4, 4, 4, 0]))                  # agree, disagree, disagree, only one has a say
    array([  3. ,   2. , -10. ,   0.5], dtype=float32)
    """
    sparse_task = {name: largest(tau, keep) * alpha for name, tau in task.items()}  # the same in every step

    def merge(name, delta):
        x, y = largest(delta, keep) * (1 - alpha), sparse_task[name]
        return np.where(x * y >= 0, x + y, np.where(abs(x) >= abs(y), x, y))

    return merge


def largest(x, keep: float):
    """The fraction `keep` of largest magnitude (at least one number), and 0 elsewhere.

    >>> largest(np.float32([1, -3, 2, 0]), 0.5)
    array([ 0., -3.,  2.,  0.], dtype=float32)
    """
    magnitude, dropped = abs(x), x.size - max(1, round(keep * x.size))
    if dropped <= 0:
        return x
    return x * (magnitude > np.partition(magnitude, dropped - 1, axis=None)[dropped - 1])
