"""What the embedded model can do, measured: `scores.json`, and the tables of its card that are made from it.

python -m tinyqwen.tiny.card FOLDER [--sibling FOLDER] [--write]     --write: into this package, for the card

goals     what the model was made for, each with the rate that it has to reach
sibling   the same of the mixture of experts that was made from it
tasks     every task of the generators, held-out items only
needles   one town among sentences, at the trained length and beyond, with each way to look that far
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyqwen.bench.report import table
from tinyqwen.evaluate.score import answers, scores
from tinyqwen.needle import Reader, frame_of, in_words, wilson
from tinyqwen.runtime import Runtime, load
from tinyqwen.tiny.data import LENGTH
from tinyqwen.tiny.generators import TASKS, Item, draw
from tinyqwen.tiny.generators.lookup import UNKNOWN
from tinyqwen.tiny.training import fits
from tinyqwen.ways import as_config

SCORES, CARD = Path(__file__).with_name("scores.json"), Path(__file__).with_name("README.md")
BEGIN, END = "<!-- from scores.json -->", "<!-- until here -->"
ASKED, TRIALS = 400, 20  # items of a goal or task; haystacks of each length and depth
WAYS = ("plain", "yarn=4", f"dca={LENGTH * 3 // 4},{LENGTH // 8}", f"dca={LENGTH * 3 // 4},{LENGTH // 8},{LENGTH}")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Goal(NamedTuple):
    """Tasks, which of their items count, and the rate to reach."""

    name: str
    tasks: tuple[str, ...]
    rate: float
    counts: Callable[[Item], bool] = lambda item: True


def three_digits(item: Item) -> bool:
    """Both numbers have three digits."""
    return [len(word) for word in re.findall(r"\d+", item.messages[-1]["content"])] == [3, 3]


def short_list(item: Item) -> bool:
    return len(item.answer.split()) <= 8


NEEDLES = "codes", "pairs", "dialogue", "town"
GOALS = (
    Goal("needles in texts and dialogues", NEEDLES, 0.95, lambda item: item.answer != UNKNOWN),
    Goal("copy, reverse, sort to 8 items", ("copy", "reverse", "sort"), 0.95, short_list),
    Goal("addition of 3 digits", ("add",), 0.95, three_digits),
    Goal("subtraction of 3 digits", ("subtract",), 0.95, three_digits),
    Goal("facts in words never seen", ("unseen",), 0.90),
    Goal("greetings and small talk", ("greet",), 0.99),
    Goal("I don't know, of what was not said", NEEDLES, 0.95, lambda item: item.answer == UNKNOWN),
    Goal("I don't know, of the world", ("unknown",), 0.95),
)


def items_of(goal: Goal, count: int, seed: int = 11) -> Iterator[Item]:
    """Held-out items of a goal, its tasks by turns. Same arguments, same items."""
    rng, found = np.random.default_rng((seed, GOALS.index(goal) if goal in GOALS else 99)), 0
    while found < count:
        item = draw(TASKS[goal.tasks[found % len(goal.tasks)]], rng, held_out=True)
        if fits(item) and goal.counts(item):
            found += 1
            yield item


def measured(name: str, runtime: Runtime, items: list[Item]) -> dict[str, Any]:
    """How many were right, and how many answers the model ended itself."""
    parts = scores(items, answers(runtime, items))
    asked, right, ended = (sum(getattr(part, key) for part in parts) for key in ("asked", "right", "ended"))
    return {"name": name, "asked": asked, "right": right, "interval": wilson(right, asked), "ended": ended}


def needles(runtime: Runtime, trials: int) -> list[dict[str, Any]]:
    """One needle, every length, depth and way."""
    found, frame = [], frame_of(runtime)
    trained = replace(runtime.config, max_position_embeddings=LENGTH)  # "yarn=4" means four times this
    for way in WAYS:
        checkpoint = replace(runtime.checkpoint, config=as_config(way, trained))
        as_asked = replace(runtime, checkpoint=checkpoint, context=4 * LENGTH)
        for times in (1, 2, 4):
            hits = {
                depth: sum(
                    Reader(as_asked).ask(
                        in_words("text", runtime.tokenizer, frame, seed, times * LENGTH, depth)
                    ).hit
                    for seed in range(trials)
                )
                for depth in DEPTHS
            }  # fmt: skip
            right, asked = sum(hits.values()), trials * len(DEPTHS)
            found.append({"way": way, "length": times * LENGTH, "asked": asked, "right": right,
                          "interval": wilson(right, asked), "depths": list(hits.values())})  # fmt: skip
    return found


def goals(runtime: Runtime, asked: int) -> list[dict[str, Any]]:
    return [{**measured(goal.name, runtime, list(items_of(goal, asked))), "goal": goal.rate} for goal in GOALS]


def examine(folder: Path, sibling: Path | None, asked: int, trials: int) -> dict[str, Any]:
    """All of it, ready for JSON."""
    runtime = load(folder)
    return {
        "goals": goals(runtime, asked),
        "sibling": goals(load(sibling), asked) if sibling else [],
        "tasks": [
            measured(task, runtime, list(items_of(Goal(task, (task,), 0), max(1, asked // 2)))) for task in TASKS
        ],
        "needles": needles(runtime, trials),
    }  # fmt: skip


def percent(one: dict[str, Any]) -> str:
    """
    >>> percent({"asked": 100, "right": 97, "interval": (0.915, 0.990)})
    '97.0 (91.5 to 99.0)'
    """
    low, high = one["interval"]
    return f"{100 * one['right'] / one['asked']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def tables(facts: dict[str, Any]) -> str:
    """The figures, in Markdown."""
    siblings = {one["name"]: percent(one) for one in facts["sibling"]}
    reached = [
        (one["name"], f"{100 * one['goal']:.0f}", percent(one), f"{100 * one['ended'] / one['asked']:.1f}",
         siblings.get(one["name"], "-"))
        for one in facts["goals"]
    ]  # fmt: skip
    tasks = [(one["name"], percent(one)) for one in facts["tasks"]]
    lengths = sorted({one["length"] for one in facts["needles"]})
    by_way = {way: {one["length"]: one for one in facts["needles"] if one["way"] == way} for way in WAYS}
    looked = [(f"`{way}`", *(percent(found[length]) for length in lengths)) for way, found in by_way.items()]
    return "\n\n".join((
        table(("goal", "to reach", "right, in percent", "ended by itself", "its sibling"), reached),
        table(("needle: run as", *(f"{length} tokens" for length in lengths)), looked),
        table(("task", "right, in percent"), tasks),
    ))  # fmt: skip


def with_tables(card: str, facts: dict[str, Any]) -> str:
    """The card with these figures between its marks."""
    head, rest = card.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables(facts)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--sibling", metavar="FOLDER", type=Path, help="the mixture of experts, for its column")
    parser.add_argument("--asked", type=int, default=ASKED, help=f"items of each goal (default {ASKED})")
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"haystacks of each kind (default {TRIALS})")
    parser.add_argument("--write", action="store_true", help="scores.json and the card of this package")
    arguments = parser.parse_args()
    facts = examine(arguments.folder, arguments.sibling, arguments.asked, arguments.trials)
    print(tables(facts))
    if arguments.write:
        SCORES.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        CARD.write_text(with_tables(CARD.read_text(encoding="utf-8"), facts), encoding="utf-8")


if __name__ == "__main__":
    main()
