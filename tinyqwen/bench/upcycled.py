"""The adder's base model as a mixture of experts, in several forms, beside itself: what is learnt from the same tokens.

Eight experts half as wide as the dense part, of which two are used, and a shared one as wide as it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backends import Backend
from tinyqwen.bench.adder import BATCH, CONFIG, Tensors, copied, examples, learn, scores
from tinyqwen.bench.report import table
from tinyqwen.config import Config
from tinyqwen.train import sft
from tinyqwen.train.chats import pack
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.reference import frozen
from tinyqwen.train.training import Report
from tinyqwen.train.upcycle import Recipe, upcycle
from tinyqwen.weights import count_parameters, tree

STEPS, EVERY = 150, 25  # in all, and between two looks at the loss
RECIPE = Recipe(experts=8, per_token=2, width=80)
UPCYCLED: dict[str, Recipe | None] = {
    "dense, continued": None,
    "experts: copies": replace(RECIPE, reinitialised=0.0),
    "experts: half of the units anew": RECIPE,
    "experts: half of the numbers anew": replace(RECIPE, by="entries"),
    "experts: all anew": replace(RECIPE, reinitialised=1.0),
    "everything anew": RECIPE,
}


def continued(backend: Backend, base: Tensors, arm: str, seed: int) -> dict[str, Any]:
    """The base model in one of these forms, after the same further lessons."""
    begin, config, tensors = time.perf_counter(), CONFIG, copied(base)
    if recipe := UPCYCLED[arm]:
        config, tensors = upcycle(config, tensors, replace(recipe, seed=seed))
    if arm == "everything anew":
        tensors = initial_weights(config, seed)
    settings = sft.Settings(steps=STEPS, lr=1e-3, batch=BATCH, warmup=10, weight_decay=0.01, seed=seed)
    data = sft.Conversations(examples(4000 + seed, BATCH * STEPS), settings.length)
    losses = [held_out(backend, config, tensors)]

    def at(report: Report) -> bool:
        if report.step % EVERY == 0:
            losses.append(held_out(backend, config, tensors))
        return False

    learn(backend, config, tensors, sft.stage(data, settings), settings, until=at)
    counts = count_parameters(config)
    return {
        "arm": arm, "seed": seed, "losses": losses, "scores": scores(backend, tensors, config),
        "parameters": counts["total"], "active": counts["active"], "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def held_out(backend: Backend, config: Config, tensors: Tensors) -> float:
    """The loss of other problems' answers."""
    step, token_N, _ = pack(examples(9000, 256))
    return -float(frozen(backend, config, tree(tensors))(step, token_N).mean())


def rows_of(runs: Sequence[dict[str, Any]], spread) -> str:
    """The table of all forms in Markdown; `spread` says mean and range."""
    rows = []
    for arm in UPCYCLED:
        of_arm = [run for run in runs if run["arm"] == arm]
        losses = [spread([run["losses"][at] for run in of_arm], ".3f", 1) for at in (0, 2, -1)]
        done = [spread([run["scores"][sign] for run in of_arm]) for sign in ("+", "-")]
        rows.append((arm, f"{of_arm[0]['parameters']:,}", f"{of_arm[0]['active']:,}", *losses, *done))
    heads = (
        "form",
        "parameters",
        "for a token",
        "loss at first",
        f"after {2 * EVERY} steps",
        f"after {STEPS}",
        "+",
        "-",
    )
    return table(heads, rows)
