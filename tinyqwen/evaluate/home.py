"""The home tasks: what the embedded model was trained for, asked with problems that no training has seen.

`tasks/tinyqwen.yaml` says the same to lm-evaluation-harness, and names the functions below. Its prompts are ChatML as
text, which is how the harness passes a conversation on; `--chat` would frame them a second time.
"""

from __future__ import annotations

from pathlib import Path

from tinyqwen.chat_template import chatml
from tinyqwen.tiny.generators import TASKS, Item
from tinyqwen.tiny.training import held_out

NAMES = tuple(TASKS)
FOLDER = Path(__file__).parent / "tasks"  # of YAML, for the harness
COUNT = 200  # items of a task: 95 % right are then 91 to 97 % by Wilson's interval


def home_items(names=NAMES, count: int = COUNT) -> list[Item]:
    """Held-out items of these tasks, always the same.

    >>> [item.task for item in home_items(("add", "copy"), 2)]
    ['add', 'add', 'copy', 'copy']
    """
    return [item for name in names for item in held_out(name, count)]


# ---- for the harness ----------------------------------------------------------------------------------------------


def dataset(task: str, **_) -> dict:
    """A task's items as the harness takes them. (It adds arguments of its own.)"""
    import datasets

    return {"test": datasets.Dataset.from_list([item._asdict() for item in home_items((task,))])}


def prompt(doc: dict) -> str:
    return chatml(doc["messages"])


def judge(doc: dict, replies: list[str]) -> dict[str, float]:
    return {"acc": float(Item(**doc).accepts(replies[0]))}
