"""Trained on short texts, asked in long ones: what do YaRN and Dual Chunk Attention save of a model's memory?

    python -m tinyqwen.bench.long_needle [--seeds 0,1,2,3,4] [--thetas 10000,1000] [--steps 1000] [--results FOLDER]

A tiny model learns to look keys up in texts of 16 to TRAINED tokens, and is then asked, by `tinyqwen.needle.keys`, in
texts of one, two and four times TRAINED. All ways to run it share the weights and read the same texts.

    lesson      a1 . b7 . a1 . . c4 . b7 . c4        pairs come again; the loss is that of values which came before
    question    . . a1 . . . b7 . . . c4 . . b       -> 7

Theta decides how much there is to lose. At 10,000 the slowest pair of a head of 32 turns by 0.02 radians in 128 tokens,
and by 0.09 in 512: a head that looks far back by it hardly notices the distance. At 1,000 it is 0.2 and 0.8.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.gradient import Gradient
from tinyqwen import __version__
from tinyqwen.bench.report import machine_facts, table
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.memory import keep_freed
from tinyqwen.model import forward
from tinyqwen.needle import keys, wilson
from tinyqwen.step import Step, make_step
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.losses import cross_entropy
from tinyqwen.train.optimisers.adamw import adamw, clip, start
from tinyqwen.train.optimisers.schedules import wsd
from tinyqwen.ways import as_config
from tinyqwen.weights import count_parameters, tree

TRAINED = 128  # tokens of the longest lesson
SHORTEST, BEGIN = 16, 32  # of the shortest; and of the longest until the model has understood the task
CONFIG = Config(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, vocab_size=24, max_position_embeddings=TRAINED, tie_word_embeddings=True, initializer_range=0.3,
)  # fmt: skip
WAYS = ("plain", "yarn=4", "dca=96,16", f"dca=96,16,{TRAINED}")  # the last: and YaRN's temperature
TIMES, DEPTHS = (1, 2, 4), (0.0, 0.25, 0.5, 0.75, 1.0)
TOKENS, LR, WARMUP, CLIP = 1024, 3e-3, 100, 1.0  # of a step: tokens at least, learning rate, norm of gradients at most
UNDERSTOOD = 0.1  # the loss, smoothed over some 20 steps


# ---- learning -----------------------------------------------------------------------------------------------------


def lesson(rng: np.random.Generator, length: int, letters: int) -> tuple[list[int], np.ndarray]:
    """Pairs key value among noise, most of them more than once; and where a key stands that came before.

    Letters are those of `keys`: a third keys, a third values, a third noise. How dense pairs lie differs by lesson.

    >>> lesson(np.random.default_rng(0), 16, 24)                # 11 5 and 1 8 came before
    ([22, 21, 20, 3, 11, 5, 10, 0, 11, 5, 10, 1, 8, 1, 8, 21], array([ 9, 13]))
    """
    third, slots = letters // 3, length // 2
    text = rng.integers(2 * third, 3 * third, length)
    taken = int(rng.integers(4, slots))
    pairs = min(third, 1 + taken // 2)
    places = 2 * np.sort(rng.choice(slots - 1, taken, replace=False)) + rng.integers(2)
    names, values = rng.choice(third, pairs, replace=False), rng.integers(third, 2 * third, pairs)
    which = rng.permutation(np.arange(taken) % pairs)
    text[places], text[places + 1] = names[which], values[which]
    first = np.unique(which, return_index=True)[1]
    return text.tolist(), np.delete(places, first)


def lessons(seed: int, number: int, longest: int, letters: int) -> tuple[Step, np.ndarray]:
    """What a step learns from, and the values that come next: a function of the seed and the step's number."""
    rng, parts, rows, begin = np.random.default_rng((seed, number)), [], [], 0
    while begin < TOKENS:
        ids, again = lesson(rng, int(rng.integers(SHORTEST, longest + 1)), letters)
        parts.append((ids, None))
        rows.append(begin + again)
        begin += len(ids)
    packed, row_N = make_step(parts), np.concatenate(rows)
    return replace(packed, row_N=row_N), packed.token_T[row_N + 1]


def longest(grown: int, steps: int) -> int:
    """The longest lesson: it grows in the first half of the steps that follow when the model has understood.

    >>> [longest(grown, 100) for grown in (0, 25, 50, 99)]
    [32, 80, 128, 128]
    """
    return BEGIN + round((TRAINED - BEGIN) * min(1, 2 * grown / steps))


def train(backend, config: Config, seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A model that has learnt to look keys up, and what that took.

    When it understands is a matter of luck, and comes suddenly: until then lessons stay short, for twice `steps` at
    most. Then they grow, and it takes `steps` more (`grown`; 0: it never did).
    """
    begin, tokens, number, grown, smooth = time.perf_counter(), 0, 0, 0, 1.0
    tensors = initial_weights(config, seed)
    weights, state, tape = tree(tensors), start(backend, tensors), Gradient(backend, tensors)
    while grown < steps and number - grown < 2 * steps:
        step, value_N = lessons(seed, number, longest(grown, steps), config.vocab_size)
        tape.clear()
        log_p_N = log_probability(tape, forward(tape, config, weights, step), value_N)
        loss, coefficient_N = cross_entropy(log_p_N)
        tape.backward(log_p_N, coefficient_N)
        clip(backend, tape.gradients, CLIP)
        number, smooth, tokens = number + 1, 0.95 * smooth + 0.05 * loss, tokens + len(step.token_T)
        lr = LR * min(1, number / WARMUP) * wsd(grown, steps)
        adamw(backend, tensors, tape.gradients, state, lr=lr)
        grown += grown > 0 or smooth < UNDERSTOOD
    seconds = time.perf_counter() - begin
    return tensors, {"steps": number, "grown": grown, "tokens": tokens, "seconds": seconds, "loss": smooth}


# ---- asking -------------------------------------------------------------------------------------------------------


def ask(backend, config: Config, tensors, length: int, depth: float, questions: int) -> int:
    """How often the likeliest next token is the answer, of that many questions."""
    asked = [keys(number, length, depth, range(config.vocab_size)) for number in range(questions)]
    logits_NV = forward(backend, config, tree(tensors), make_step([(one.ids, None) for one in asked]))
    return sum(int(token) == one.answer[0] for token, one in zip(logits_NV.argmax(axis=-1), asked))


def run(backend, theta: float, seed: int, steps: int, questions: int) -> dict[str, Any]:
    """One model, trained and asked in every way."""
    config = replace(CONFIG, rope_theta=theta)
    tensors, taken = train(backend, config, seed, steps)
    hits = [
        {"way": way, "length": TRAINED * times, "depth": depth, "asked": questions,
         "hits": ask(backend, as_config(way, config), tensors, TRAINED * times, depth, questions)}
        for way, times, depth in product(WAYS, TIMES, DEPTHS)
    ]  # fmt: skip
    return {"theta": theta, "seed": seed, **taken, "cells": hits}


# ---- what was found -----------------------------------------------------------------------------------------------


def rate(models: Sequence[dict[str, Any]], **wanted) -> dict[str, Any]:
    """Questions of all models in the cells that are as wanted, taken together; and the accuracy of each seed alone."""
    found = {
        model["seed"]: [cell for cell in model["cells"] if wanted.items() <= cell.items()] for model in models
    }  # fmt: skip
    counts = {seed: [sum(cell[key] for cell in cells) for key in ("hits", "asked")] for seed, cells in found.items()}
    hits, asked = (sum(column) for column in zip(*counts.values()))
    return {**wanted, "hits": hits, "asked": asked, "accuracy": hits / asked, "wilson": wilson(hits, asked),
            "seeds": {seed: hits / asked for seed, (hits, asked) in counts.items()}}  # fmt: skip


def rates(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every theta and way: at every length, and at every depth of the longest. Of models that have learnt the task."""
    lengths, found, learnt = [TRAINED * times for times in TIMES], [], [model for model in models if model["grown"]]
    for theta, way in product(dict.fromkeys(model["theta"] for model in learnt), WAYS):
        group = [model for model in learnt if model["theta"] == theta]
        found.append({
            "theta": theta, "way": way, "lengths": [rate(group, way=way, length=length) for length in lengths],
            "depths": [rate(group, way=way, length=lengths[-1], depth=depth) for depth in DEPTHS],
        })  # fmt: skip
    return found


def tables(found: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Heads and rows, in percent: of all lengths, with Wilson's intervals; and of the longest, by depth and by seed."""
    lengths = [f"{TRAINED * times} tokens" for times in TIMES]
    seeds = sorted({seed for one in found for seed in one["lengths"][-1]["seeds"]})
    by_length, by_depth = [], []
    for one in found:
        way, longest = (f"{one['theta']:,.0f}", one["way"]), one["lengths"][-1]
        parts = [*(rate["accuracy"] for rate in one["depths"]), *(longest["seeds"].get(seed) for seed in seeds)]
        by_length.append((*way, *(spread(rate) for rate in one["lengths"])))
        by_depth.append((*way, *("" if part is None else f"{100 * part:.1f}" for part in parts)))
    return [
        (("theta", "way", *lengths), by_length),
        (("theta", "way", *(f"depth {depth:.0%}" for depth in DEPTHS), *(f"seed {seed}" for seed in seeds)), by_depth),
    ]


def spread(rate: dict[str, Any]) -> str:
    low, high = rate["wilson"]
    return f"{100 * rate['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def about(facts: dict[str, Any]) -> str:
    """What was done, in words."""
    models = facts["models"]
    tokens, seconds = (sum(model[key] for model in models) / len(models) for key in ("tokens", "seconds"))
    least, most = (bound(model["steps"] for model in models) for bound in (min, max))
    seeds = ", ".join(map(str, dict.fromkeys(model["seed"] for model in models)))
    lost = [f"seed {model['seed']} at theta {model['theta']:,}" for model in models if not model["grown"]]
    left_out = f"\n\nLeft out, because they did not learn the task even in short lessons: {'; '.join(lost)}." * bool(
        lost
    )
    return (
        f"# Long needles, measured on {facts['date'][:10]}\n\n"
        f"Needles found, in percent: keys without language among noise, in texts of {TRAINED} to {TRAINED * TIMES[-1]} "
        f"tokens, read by models trained on texts of up to {TRAINED}. In brackets, between which rates the true one "
        f"lies (Wilson, 95 %). Depths and seeds: of the longest texts; depth 0 is farthest from the question.\n\n"
        f"{facts['parameters']:,} parameters, {facts['config']['num_hidden_layers']} layers, D "
        f"{facts['config']['hidden_size']}, heads of {facts['config']['head_dim']}; {least} to {most} steps, "
        f"{tokens:,.0f} tokens, {seconds:.0f} s each in the mean, on one thread; seeds {seeds}; "
        f"tinyqwen {facts['tinyqwen']}, NumPy {facts['numpy']}, {facts['machine']['processor']}.{left_out}"
    )


def measure(backend, thetas: Sequence[float], seeds: Sequence[int], steps: int, questions: int) -> dict[str, Any]:
    """All models, trained and asked; ready for JSON."""
    models = []
    for theta, seed in product(thetas, seeds):
        models.append(run(backend, theta, seed, steps, questions))
        taken, seconds, loss = (models[-1][key] for key in ("steps", "seconds", "loss"))
        print(f"theta {theta:,.0f}, seed {seed}: {taken} steps, {seconds:.0f} s, loss {loss:.4f}", file=sys.stderr)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tinyqwen": __version__, "numpy": np.__version__, "machine": machine_facts(),
        "config": json.loads(to_json(CONFIG)), "parameters": count_parameters(CONFIG)["total"], "trained": TRAINED,
        "steps": steps, "lr": LR, "models": models, "rates": rates(models),
    }  # fmt: skip


def report(facts: dict[str, Any], folder: Path | None) -> None:
    """The tables, in Markdown, on standard output; and both files."""
    parts = [about(facts), *(table(heads, body) for heads, body in tables(facts["rates"]))]
    print(*parts, sep="\n\n")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"needle-{facts['date'][:10]}"
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--thetas", type=numbers, default=[10_000, 1_000])
    parser.add_argument("--steps", type=int, default=1000, help="after the model has understood the task")
    parser.add_argument("--questions", type=int, default=50, help="of each seed, length and depth")
    parser.add_argument("--results", type=Path, help="folder for needle-DATE.md and needle-DATE.json")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.questions) < 1:
        parser.error("--steps and --questions must be at least 1")
    keep_freed()
    backend = backends.get("cpu", threads=1)  # matrices this small are no work for two
    report(measure(backend, arguments.thetas, arguments.seeds, arguments.steps, arguments.questions), arguments.results)


if __name__ == "__main__":
    main()
