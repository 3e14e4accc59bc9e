"""The optimiser that settings name, as one function of model, gradients, state and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyqwen.errors import UsageError
from tinyqwen.train.optimisers.adamw import AdamState, adamw
from tinyqwen.train.optimisers.muon import is_hidden, muon
from tinyqwen.train.optimisers.online_merging import on_dare, on_ties

if TYPE_CHECKING:
    from tinyqwen.train.settings import Settings

Tree = Mapping[str, Any]
Update = Callable[[Any, Tree, Tree, AdamState, float], None]  # backend, parameters, gradients, state, learning rate


def optimiser(settings: Settings, task: Tree | None = None) -> Update:
    """The optimiser of these settings, as one function.

    task   what fine-tuning had changed before, for online merging: `online_merging.task_vector`

    All keep their past in the same state, and what is left to chance follows from the seed and the step's number: a run
    that is continued is the run that was not interrupted. Muon's momentum is the state's m; its rate is 20 times that
    of AdamW, which goes on for what is no hidden matrix.
    """
    decay = settings.weight_decay
    if settings.optimiser == "muon":

        def update(backend, parameters, gradients, state, lr):
            hidden = {name: theta for name, theta in parameters.items() if is_hidden(name, theta)}
            others = {name: theta for name, theta in parameters.items() if name not in hidden}
            muon(backend, hidden, gradients, state.m, lr=20 * lr, weight_decay=decay / 20)
            adamw(backend, others, gradients, state, lr=lr, weight_decay=decay)

        return update
    if settings.optimiser == "adamw":
        return lambda backend, parameters, gradients, state, lr: adamw(
            backend, parameters, gradients, state, lr=lr, weight_decay=decay
        )
    if task is None:
        raise UsageError(
            f"{settings.optimiser} merges with what was learnt since --pretrained: name the model before that"
        )
    how, changes = {"keep": settings.keep, "alpha": settings.alpha}, task
    ties = on_ties(changes, **how) if settings.optimiser == "onties" else None

    def merging(backend, parameters, gradients, state, lr):
        dice = np.random.default_rng((settings.seed, state.step))
        merge = ties or on_dare(changes, dice, **how, rescale=settings.rescale)
        adamw(backend, parameters, gradients, state, lr=lr, weight_decay=decay, merge=merge)

    return merging
