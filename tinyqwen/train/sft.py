"""Supervised fine-tuning: conversations in which the model learns what the assistant said.

    loss = - sum over the tokens to be learnt of log p(token) / how many there are

They are counted over the whole step, whatever parts it is cut into: a token counts the same in a short answer and in a
long one. Which tokens are to be learnt, `tinyqwen.train.chats` says.

Data: JSON lines {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}.

Qwen2 was tuned on more than 500,000 examples, twice, at rates from 7e-6 down to 7e-7; models of some million parameters
want 3e-4 to 1e-3.

Source: Qwen2 technical report, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyqwen.errors import UsageError
from tinyqwen.train.chats import Example, Format, digest, fitting, in_parts, pack, read_conversations
from tinyqwen.train.data import chosen
from tinyqwen.train.losses import cross_entropy
from tinyqwen.train.settings import Settings as Common
from tinyqwen.train.settings import setting
from tinyqwen.train.training import Lesson, Lessons, Stage


@dataclass(frozen=True)
class Settings(Common):
    """Those of fine-tuning."""

    lr: float = setting(1e-4, "the peak of the learning rate")
    batch: int = setting(16, "conversations of a step", least=1)
    length: int = setting(2048, "tokens; longer conversations are left out", least=2)
    qwen_style: bool = setting(False, "learn the frames of all turns, too, as Qwen's own script does")


class Conversations:
    """Examples to be learnt. left_out: how many were too long."""

    def __init__(self, examples: Sequence[Example], length: int):
        self.examples, self.left_out = fitting(examples, [len(example.ids) for example in examples], length)
        self.digest = digest([(example.ids, example.learnt_T.tolist()) for example in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __str__(self) -> str:
        left_out = f" ({self.left_out:,} longer ones left out)" if self.left_out else ""
        learnt = sum(int(example.learnt_T.sum()) for example in self.examples)
        return f"{len(self):,} conversations{left_out}, {learnt:,} tokens to be learnt"


def read(paths: Sequence[Path], format: Format, settings: Settings) -> Conversations:
    """The conversations of JSON lines {"messages": [...]}.

    Errors: UsageError names the line that cannot be used, also where nothing is to be learnt.
    """
    found = list(read_conversations(paths))
    examples = []
    for (where, _), ids in zip(found, format.encode([messages for _, messages in found])):
        examples.append(Example(ids, format.learnt(ids, qwen_style=settings.qwen_style)))
        if not examples[-1].learnt_T.any():
            raise UsageError(f"{where}: nothing to learn; no message is the assistant's")
    return Conversations(examples, settings.length)


def stage(data: Conversations, settings: Settings) -> Stage:
    """Of each step some conversations, in parts."""

    def of_step(number: int) -> Lessons:
        picked = [data.examples[n] for n in chosen(len(data), number, settings.batch, settings.seed)]
        return Lessons([cut(picked, settings.part)])

    return of_step


def cut(examples: Sequence[Example], most: int) -> list[Lesson]:
    """The examples of a step as lessons of at most so many tokens."""
    learnt = sum(int(example.learnt_T.sum()) for example in examples)
    parts = [examples[part] for part in in_parts([len(example.ids) - 1 for example in examples], most)]
    return [lesson(part, learnt) for part in parts]


def lesson(examples: Sequence[Example], learnt: int) -> Lesson:
    step, token_N, _ = pack(examples)
    return Lesson(step, token_N, lambda log_p_N: (*cross_entropy(log_p_N, total=learnt), {}), len(token_N) / learnt)
