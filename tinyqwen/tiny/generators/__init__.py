"""Generators: each is a pure function of a NumPy generator, and makes one item of a task."""

from tinyqwen.tiny.generators import (
    arithmetic,
    lookup,
    paraphrase,
    programs,
    qwen2,
    small_talk,
    stories,
    strings,
    tables,
    unknown,
)
from tinyqwen.tiny.generators.item import Generator, Item, ask, draw, is_held_out

TASKS: dict[str, Generator] = {
    "add": arithmetic.add,
    "subtract": arithmetic.subtract,
    "multiply": arithmetic.multiply,
    "compare": arithmetic.compare,
    "parity": arithmetic.parity,
    **lookup.TASKS,
    **strings.TASKS,
    **tables.TASKS,
    "facts": qwen2.fact,
    "talk": small_talk.talk,
    "unknown": unknown.unknown,
    "programs": programs.program,
    "story": stories.story,
    "asked": paraphrase.asked,
    "greet": paraphrase.greet,
    "unseen": qwen2.unseen,
    "missing": lookup.missing,
    "few": lookup.few,
}

__all__ = ["TASKS", "Generator", "Item", "ask", "draw", "is_held_out"]
