"""The run: every step draws fresh documents, learns their answers, and now and then is examined with what is held out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from backends.gradient import Gradient
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.tiny.data import SYSTEMS, Document, Encoder, packed
from tinyqwen.tiny.generators import TASKS, Item, draw
from tinyqwen.tiny.recipe import Recipe, at
from tinyqwen.train.losses import cross_entropy
from tinyqwen.train.optimisers.adamw import AdamState, adamw, clip
from tinyqwen.train.training import Report
from tinyqwen.weights import tree


def train(
    backend, config: Config, tensors: dict[str, np.ndarray], state: AdamState, encoder: Encoder, recipe: Recipe
) -> Iterator[Report]:
    """Steps until the recipe is done; tensors and state change in place."""
    weights, tape, stages = tree(tensors), Gradient(backend, tensors), recipe.stages
    while state.step < recipe.steps:
        begin, number = time.perf_counter(), state.step
        stage, lr = at(stages, number)
        rng = np.random.default_rng((recipe.seed, number))
        step, token_N = packed(lambda: encoder.document(rng, stage.mixture), stage.tokens)  # noqa: B023
        tape.clear()
        log_p_N = log_probability(tape, forward(tape, config, weights, step), token_N)
        loss, coefficient_N = cross_entropy(log_p_N)
        tape.backward(log_p_N, coefficient_N)
        norm = clip(backend, tape.gradients, recipe.clip)
        adamw(backend, tensors, tape.gradients, state, lr=lr, weight_decay=recipe.weight_decay)
        yield Report(number + 1, loss, 0.0, norm, lr, len(step.token_T), time.perf_counter() - begin, {})


def held_out(task: str, count: int, seed: int = 0) -> list[Item]:
    """Items of a task that no training has seen. Same arguments, same items."""
    rng = np.random.default_rng((seed, list(TASKS).index(task), 7))
    return [draw(TASKS[task], rng, held_out=True) for _ in range(count)]


def examine(backend, config: Config, tensors: dict[str, np.ndarray], encoder: Encoder, items: Iterable[Item]) -> float:
    """The share of items of which every token of the answer is the likeliest one: greedy decoding would be exact."""
    items = list(items)
    documents = [as_document(encoder, item) for item in items]
    queue = iter(documents)
    step, token_N = packed(lambda: next(queue), sum(len(one.ids) for one in documents))
    right_N = forward(backend, config, tree(tensors), step).argmax(axis=-1) == token_N
    cuts = np.cumsum([0, *(len(one.targets) for one in documents)])[:-1]
    return float(np.logical_and.reduceat(right_N, cuts).mean())


def as_document(encoder: Encoder, item: Item) -> Document:
    """The item alone, as `chat` would ask it; targets are those of its last answer."""
    ids = encoder.turn("system", SYSTEMS[0]).ids
    for message in item.messages:
        ids = ids + encoder.turn(**message).ids
    answer = encoder.turn("assistant", item.answer)
    return Document(ids + answer.ids, [len(ids) + place for place in answer.targets])
