"""How the embedded model was trained: its shape, and the stages, one after another.

Stages:

    short     short tasks and many short repeats, small steps: how a model works appears in steps, not in tokens
    longer    everything, repeats of longer segments
    seen      nearly all on what was not said: words that came before or did not (`seen.py`)
    few       the same questions in short conversations, smaller steps still: what was not said is now known not to be
    all       everything, for much was forgotten meanwhile; larger steps, fewer repeats, questions in other words
    harder    more of what is not yet learnt
    slower    a falling learning rate: the loss falls most here
    last      still larger steps, down to the end
    again     more of what is still missing of it, and once more down to the end

The sibling, a mixture of experts, is upcycled from the finished model and trained on for a short while.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from tinyqwen.config import Config
from tinyqwen.tiny.data import AGAIN, BRIEF, FEW, HARDER, LATER, LENGTH, MISSING, SHARES, Mixture
from tinyqwen.train import upcycle

CONFIG = Config(
    hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
    head_dim=32, vocab_size=1536, max_position_embeddings=LENGTH, rope_theta=10000.0, tie_word_embeddings=True,
    eos_token_id=(1535, 1533), initializer_range=0.3, torch_dtype="bfloat16",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    steps     how many
    tokens    of a step, about
    lr        at its beginning and at its end, with a straight line between
    """

    name: str
    steps: int
    tokens: int
    lr: tuple[float, float]
    mixture: Mixture


STAGES = (
    Stage("warm-up", 200, 512, (0.0, 2e-3), Mixture(BRIEF, repeats=0.5, longest=8)),
    Stage("short", 5_000, 512, (2e-3, 2e-3), Mixture(BRIEF, repeats=0.5, longest=8)),
    Stage("longer", 4_300, 1024, (2e-3, 2e-3), Mixture(SHARES, repeats=0.25, longest=16)),
    Stage("seen", 1_600, 1024, (1e-3, 1e-3), Mixture(MISSING, repeats=0.05, seen=0.45)),
    Stage("few", 1_250, 512, (1e-3, 1e-3), Mixture(FEW, repeats=0.05, seen=0.35)),
    Stage("all", 2_250, 2048, (1.2e-3, 1.2e-3), Mixture(LATER, repeats=0.1)),
    Stage("harder", 2_300, 2048, (1.2e-3, 1.2e-3), Mixture(HARDER, repeats=0.05)),
    Stage("slower", 2_400, 2048, (1.2e-3, 3e-4), Mixture(HARDER, repeats=0.05)),
    Stage("last", 850, 4096, (3e-4, 2e-5), Mixture(HARDER, repeats=0.05)),
    Stage("again", 1_100, 2048, (5e-4, 2e-5), Mixture(AGAIN, repeats=0.05)),
)
EXPERTS_STAGES = (
    Stage("warm-up", 50, 2048, (0.0, 6e-4), Mixture(AGAIN, repeats=0.05)),
    Stage("experts", 600, 2048, (6e-4, 3e-5), Mixture(AGAIN, repeats=0.05)),
)
EXPERTS = upcycle.Recipe(experts=8, per_token=2, width=128)


@dataclass(frozen=True)
class Recipe:
    """All that decides the result.

    experts   the sibling, a mixture of experts that begins with the finished model
    scale     shortens every stage, for trials and tests
    """

    experts: bool = False
    seed: int = 0
    scale: float = 1.0
    weight_decay: float = 0.1
    clip: float = 1.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        stages = EXPERTS_STAGES if self.experts else STAGES
        return tuple(replace(stage, steps=max(1, round(self.scale * stage.steps))) for stage in stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, float]:
    """The stage that a step belongs to, counted from 0, and its learning rate.

    >>> stage, lr = at(Recipe().stages, 100)
    >>> stage.name, round(lr, 6)
    ('warm-up', 0.001)

    Errors: ValueError behind the last stage.
    """
    for stage in stages:
        if step < stage.steps:
            begin, end = stage.lr
            return stage, begin + (end - begin) * step / stage.steps
        step -= stage.steps
    raise ValueError("there is no such step")


def digest(recipe: Recipe, step: int) -> str:
    """Of the stages that have begun before that step: later ones may still change, and a run goes on."""
    begun, first = [], 0
    for stage in recipe.stages:
        if first < step:
            begun.append(stage)
        first += stage.steps
    return hashlib.sha256(repr(begun).encode()).hexdigest()[:16]
