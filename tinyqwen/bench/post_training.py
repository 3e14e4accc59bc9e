"""What alignment earns and what it costs: one table of methods and optimisers, and one of upcycling.

    python -m tinyqwen.bench.post_training WORK [--seeds 0,1,2] [--results FOLDER]

A tiny model learns to add and subtract (`adder.py`) and is stopped early (base), learns on with a falling rate (SFT),
and then practises addition alone, without being told answers: from pairs of its own right and wrong ones (DPO), from
the best and the worst of eight, again and again (online DPO), or from all eight (GRPO). Each with AdamW and with both
online merging optimizers; tau is SFT - base. Reward: additions solved. Tax: what subtraction loses. The last columns
take the mean of the weights with those of the SFT model: merging afterwards, a strong and free rival.

Then the base model is upcycled to eight experts, of which two are used, and learns on, beside itself and beside experts
that begin at random, on the same tokens.

Every run is kept in WORK, so that the command can be interrupted; 15 to 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import safetensors.numpy

import backends
from backends import Backend
from tinyqwen import __version__
from tinyqwen.bench import adder, upcycled
from tinyqwen.bench.adder import BATCH, Tensors, copied, learn, scores
from tinyqwen.bench.report import machine_facts, table
from tinyqwen.memory import keep_freed
from tinyqwen.train import dpo, grpo, online_dpo, sft
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.online_merging import task_vector
from tinyqwen.train.reference import Reference, frozen
from tinyqwen.train.rollouts import Tasks, answers, verified
from tinyqwen.train.training import Report, Stage
from tinyqwen.weights import count_parameters, tree

READY = 0.1  # of both signs are solved when the base model is taken
PROMPTS, GROUP, STEPS = 32, 8, 150

COMMON: dict[str, Any] = {"warmup": 0, "weight_decay": 0.0}
MERGING = {"keep": 0.2, "alpha": 3e-3}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "OnDARE": {"optimiser": "ondare", "rescale": True, **MERGING},
    "OnTIES": {"optimiser": "onties", **MERGING},
}
METHODS: dict[str, Callable[..., Any]] = {
    "DPO": lambda **how: dpo.Settings(steps=40, batch=64, lr=3e-5, beta=0.5, **COMMON, **how),
    "online DPO": lambda **how: online_dpo.Settings(
        steps=STEPS, batch=PROMPTS, group=GROUP, answer=adder.ANSWER, lr=3e-4, beta=0.1, **COMMON, **how
    ),
    "GRPO": lambda **how: grpo.Settings(
        steps=STEPS, batch=PROMPTS, group=GROUP, answer=adder.ANSWER, lr=5e-4, **COMMON, **how
    ),
}  # fmt: skip


# ---- the models to begin with -------------------------------------------------------------------------------------


def base_model(backend: Backend, seed: int) -> Tensors:
    """Stopped as soon as it solves a few: Adam's rate still at its peak."""
    tensors = initial_weights(adder.CONFIG, seed)
    settings = sft.Settings(steps=800, lr=2e-3, batch=BATCH, warmup=50, weight_decay=0.01, seed=seed)

    def ready(report: Report) -> bool:
        due = report.step >= 240 and report.step % 20 == 0
        weights = tree(tensors)
        return due and all(adder.accuracy(backend, weights, sign, 200) >= READY for sign in (adder.PLUS, adder.MINUS))

    data = sft.Conversations(adder.examples(seed, BATCH * 800), settings.length)
    learn(backend, adder.CONFIG, tensors, sft.stage(data, replace(settings, schedule="wsd")), settings, until=ready)
    return tensors


def sft_model(backend: Backend, base: Tensors, seed: int) -> Tensors:
    """A little more of the same, with a rate that falls."""
    tensors = copied(base)
    settings = sft.Settings(
        steps=40, lr=1e-3, batch=BATCH, warmup=0, schedule="cosine", weight_decay=0.01, seed=seed
    )  # fmt: skip
    data = sft.Conversations(adder.examples(1000 + seed, BATCH * 40), settings.length)
    learn(backend, adder.CONFIG, tensors, sft.stage(data, settings), settings)
    return tensors


# ---- alignment ----------------------------------------------------------------------------------------------------


def pairs(backend: Backend, tensors: Tensors, seed: int, prompts: int = 768) -> dpo.Pairs:
    """A right and a wrong answer to each addition of which the model gives both (rejection sampling)."""
    asked = [task for task in adder.tasks(3000 + seed, prompts) for _ in range(GROUP)]
    given = answers(adder.policy(backend, tree(tensors)), asked, (seed, 99), tokens=adder.ANSWER)
    found = online_dpo.best_and_worst(verified(asked, given).reshape(-1, GROUP))
    return dpo.Pairs([dpo.Pair(given[best].example, given[worst].example) for best, worst in found], 99)


def stage_of(
    backend: Backend, tensors: Tensors, seed: int, settings: Any, reference: Reference, ranked: dpo.Pairs
) -> Stage:
    if isinstance(settings, dpo.Settings):
        return dpo.stage(ranked, settings, reference)
    asked = Tasks(adder.tasks(2000 + seed, PROMPTS * settings.steps), 99)
    policy = adder.policy(backend, tree(tensors))
    kind = grpo.stage if isinstance(settings, grpo.Settings) else online_dpo.stage
    return kind(asked, settings, policy, verified, reference)


def beginning(backend: Backend, base: Tensors, tuned: Tensors, ranked: dpo.Pairs, seed: int) -> dict[str, Any]:
    return {"seed": seed, "base": scores(backend, base), "scores": scores(backend, tuned), "pairs": len(ranked)}


def align(backend: Backend, base: Tensors, tuned: Tensors, ranked: dpo.Pairs, method: str, how: str, seed: int) -> dict:
    """One run: what the model can do afterwards, alone and merged with the one that it was."""
    begin, tensors = time.perf_counter(), copied(tuned)
    settings = METHODS[method](seed=seed, **OPTIMISERS[how])
    stage = stage_of(backend, tensors, seed, settings, frozen(backend, adder.CONFIG, tree(tuned)), ranked)
    last = learn(backend, adder.CONFIG, tensors, stage, settings, task=task_vector(tuned, base))
    merged = {name: (tensor + tuned[name]) / 2 for name, tensor in tensors.items()}
    return {
        "method": method, "optimiser": how, "seed": seed, "scores": scores(backend, tensors),
        "merged": scores(backend, merged), "last": last.figures, "seconds": time.perf_counter() - begin,
    }  # fmt: skip


# ---- all of it ----------------------------------------------------------------------------------------------------


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before, or now."""
    weights = path.suffix == ".safetensors"
    if not path.exists():
        made, part = make(), path.with_suffix(".part")
        if weights:
            safetensors.numpy.save_file(made, part)
        else:
            part.write_text(json.dumps(made))
            print(json.dumps(made), file=sys.stderr, flush=True)
        part.rename(path)
    return safetensors.numpy.load_file(path) if weights else json.loads(path.read_text())


def measure(backend: Backend, work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Every run of every seed; ready for JSON."""
    work.mkdir(parents=True, exist_ok=True)
    starts, aligned, mixtures = [], [], []
    for seed in seeds:

        def file(name: str, seed=seed) -> Path:
            return work / f"{seed}-{name.replace(' ', '-')}"

        base = kept(file("base.safetensors"), partial(base_model, backend, seed))
        tuned = kept(file("sft.safetensors"), partial(sft_model, backend, base, seed))
        ranked = pairs(backend, tuned, seed)
        starts.append(kept(file("start.json"), partial(beginning, backend, base, tuned, ranked, seed)))
        for method, how in product(METHODS, OPTIMISERS):
            run = partial(align, backend, base, tuned, ranked, method, how, seed)
            aligned.append(kept(file(f"{method}-{how}.json"), run))
        for number, arm in enumerate(upcycled.UPCYCLED):
            mixtures.append(
                kept(file(f"upcycled-{number}.json"), partial(upcycled.continued, backend, base, arm, seed))
            )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "tinyqwen": __version__,
        "numpy": np.__version__, "machine": machine_facts(), "seeds": list(seeds), "questions": adder.QUESTIONS,
        "parameters": count_parameters(adder.CONFIG)["total"], "starts": starts, "aligned": aligned,
        "upcycled": mixtures,
    }  # fmt: skip


def spread(values: Sequence[float], form: str = ".1f", times: float = 100) -> str:
    """The mean, and from where to where the seeds lie.

    >>> spread([0.25, 0.5, 0.75])
    '50.0 (25.0 to 75.0)'
    """
    low, middle, high = (f"{times * value:{form}}" for value in (min(values), mean(values), max(values)))
    return f"{middle} ({low} to {high})"


def tables(facts: dict[str, Any]) -> list[str]:
    """Both tables in Markdown."""
    signs = ("+", "-")
    start = [spread([one["scores"][sign] for one in facts["starts"]]) for sign in signs]
    rows = [("SFT, the start", "", *start, "", "")]
    for method in METHODS:
        for how in OPTIMISERS:
            runs = [run for run in facts["aligned"] if (run["method"], run["optimiser"]) == (method, how)]
            cells = [spread([run[key][sign] for run in runs]) for key in ("scores", "merged") for sign in signs]
            rows.append((method, how, *cells))
    first = table(("method", "optimiser", "reward: +", "tax: -", "merged with SFT: +", "merged: -"), rows)
    return [first, upcycled.rows_of(facts["upcycled"], spread)]


def about(facts: dict[str, Any]) -> str:
    seconds = sum(run["seconds"] for run in (*facts["aligned"], *facts["upcycled"]))
    pairs_found = ", ".join(str(one["pairs"]) for one in facts["starts"])
    return (
        f"# Alignment, its tax, and upcycling, measured on {facts['date'][:10]}\n\n"
        f"Problems of three digits solved, in percent of {facts['questions']} that no training has seen; the mean of "
        f"{len(facts['seeds'])} seeds (which decide everything, the first weights too), in brackets the lowest and the "
        f"highest. Only additions are practised, without answers; subtraction shows the tax. DPO learns from "
        f"{pairs_found} pairs; online DPO and GRPO from {STEPS} steps of {PROMPTS} prompts with {GROUP} answers each. "
        f"OnDARE and OnTIES keep {MERGING['keep']} of each step, alpha {MERGING['alpha']}; OnDARE rescales, as its "
        f"published code does.\n\n"
        f"Upcycling: {upcycled.STEPS} more steps of both skills from the base model, the same tokens for all; 8 "
        f"experts of width 80, 2 for a token, and a shared one of 160, which in all mixtures but the last begins as "
        f"the dense part.\n\n"
        f"{facts['parameters']:,} parameters; {seconds / 60:.0f} minutes by the clock on one thread of a busy machine, "
        f"without the models to begin with; tinyqwen {facts['tinyqwen']}, NumPy {facts['numpy']}, "
        f"{facts['machine']['processor']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for what is done; the same continues")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--results", type=Path, help="folder for post-training-DATE.md and .json")
    arguments = parser.parse_args()
    keep_freed()
    facts = measure(backends.get("cpu", threads=1), arguments.work, arguments.seeds)
    parts = [about(facts), *tables(facts)]
    print(*parts, sep="\n\n")
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        path = arguments.results / f"post-training-{facts['date'][:10]}"
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
