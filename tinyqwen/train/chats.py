"""Conversations as training sees them: ids, and which of them are to be learnt.

    <|im_start|>user \n Hi <|im_end|> \n <|im_start|>assistant \n Hello! <|im_end|> \n
                                                                  ^^^^^^ ^^^^^^^^^^      what is learnt
    ^^^^^^^^^^^^                 ^^^^^^^^^^ ^^ ^^^^^^^^^^^^        ^^^^^^ ^^^^^^^^^^ ^^   what Qwen learnt

The model shall write answers, and end them: without <|im_end|> it would never stop. What others say it only reads.
Qwen's own script marks the turns' frames as well, in every turn: `qwen_style`.

Names of control tokens inside of messages are text, as everywhere, so the frames are found by their ids.

Source: QwenLM/Qwen, finetune.py, preprocess, at 00dceeb.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyqwen.chat_template import Message, encode_chats, read_template
from tinyqwen.errors import UsageError
from tinyqwen.step import Step, make_step
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train.data import json_lines

START, END = "<|im_start|>", "<|im_end|>"


class Example(NamedTuple):
    """A sequence, and which of its tokens are to be learnt; never the first, which nothing comes before."""

    ids: list[int]
    learnt_T: np.ndarray

    @property
    def prompt(self) -> list[int]:
        """What comes before the first token to be learnt."""
        return self.ids[: int(self.learnt_T.argmax())]


class Format:
    """How this model's conversations are written: its tokenizer and its own template, or ChatML without one.

    Errors: UsageError if the tokenizer has no <|im_start|> or <|im_end|>; those of both files.
    """

    def __init__(self, folder: Path | str, tokenizer: Tokenizer | None = None):
        self.tokenizer = tokenizer or Tokenizer(folder)
        self.template, self.variables = read_template(folder)
        if missing := [name for name in (START, END) if name not in self.tokenizer.control]:
            raise UsageError(f"{folder}: the tokenizer has no {missing[0]}, which conversations are made of")
        self.start, self.end = (self.tokenizer.control[name] for name in (START, END))

    def encode(self, conversations: list[list[Message]], *, prompt: bool = False) -> list[list[int]]:
        """Their ids; `prompt`: to be answered."""
        return encode_chats(
            self.tokenizer, conversations, template=self.template, variables=self.variables, prompt=prompt
        )

    def answer(self, text: str) -> list[int]:
        """The ids of an answer, with its end."""
        return [*self.tokenizer.encode(text), self.end]

    def learnt(self, ids: Sequence[int], *, qwen_style: bool = False) -> np.ndarray:
        """Which ids of a conversation are to be learnt, see above."""
        id_T, role = np.asarray(ids), self.tokenizer.encode("assistant")
        learnt_T = np.zeros(len(id_T), bool)
        ends = np.flatnonzero(id_T == self.end).tolist()
        for begin in np.flatnonzero(id_T == self.start).tolist():
            stop = next((end for end in ends if end > begin), len(id_T) - 1)
            said = begin + 1 + len(role)
            if id_T[begin + 1 : said].tolist() == role:
                learnt_T[said + 1 : stop + 1] = True  # after the line break
            if qwen_style:
                learnt_T[[begin, stop]] = True
                learnt_T[stop + 1 : stop + 2] = True
        learnt_T[:1] = False
        return learnt_T


def answered(prompt: list[int], answer: list[int]) -> Example:
    """A prompt, of which nothing is learnt, and an answer, all of which is."""
    return Example(prompt + answer, np.arange(len(prompt) + len(answer)) >= len(prompt))


def pack(examples: Sequence[Example]) -> tuple[Step, np.ndarray, np.ndarray]:
    """Sequences end to end, none sees another: the step with a row for each token to be learnt, those, and whose.

    >>> step, token_N, sequence_N = pack([answered([5, 6], [7, 8]), answered([5], [9])])
    >>> step.token_T.tolist(), step.row_N.tolist(), token_N.tolist(), sequence_N.tolist()
    ([5, 6, 7, 5], [1, 2, 3], [7, 8, 9], [0, 0, 1])
    """
    packed = make_step([(example.ids[:-1], None) for example in examples])
    rows = [span.start + np.flatnonzero(example.learnt_T[1:]) for span, example in zip(packed.spans, examples)]
    row_N = np.concatenate(rows)
    after_T = np.concatenate([example.ids[1:] for example in examples])
    sequence_N = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return replace(packed, row_N=row_N), after_T[row_N], sequence_N


def in_parts(lengths: Sequence[int], most: int) -> list[slice]:
    """Cut a list of things into parts of `most` tokens together, in order; a longer one is a part of its own.

    >>> in_parts([3, 4, 9, 1, 1], 8), in_parts([3, 4], 0)            # 0: all at once
    ([slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)], [slice(0, 2, None)])
    """
    parts, begin, tokens = [], 0, 0
    for n, length in enumerate(lengths):
        if most and n > begin and tokens + length > most:
            parts.append(slice(begin, n))
            begin, tokens = n, 0
        tokens += length
    return [*parts, slice(begin, len(lengths))] if len(lengths) else parts


def digest(examples: Sequence[Any]) -> str:
    """Of examples, to tell other data from these."""
    return hashlib.sha256("\n".join(map(repr, examples)).encode()).hexdigest()[:16]


# ---- files --------------------------------------------------------------------------------------------------------


def read_conversations(paths: Sequence[Path]) -> Iterator[tuple[str, list[Message]]]:
    """Lines {"messages": [{"role": ..., "content": ...}, ...]}, and where each stands. Errors: UsageError."""
    for where, line in itertools.chain.from_iterable(map(json_lines, paths)):
        yield where, messages_of(where, line.get("messages"), "messages")


def messages_of(where: str, value: Any, name: str) -> list[Message]:
    """Messages, checked: a text is one of the user's.

    >>> messages_of("here", "Hi", "prompt")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(value, str) and name == "prompt":
        return [{"role": "user", "content": value}]
    good = isinstance(value, list) and value and all(
        isinstance(each, dict) and all(isinstance(each.get(key), str) for key in ("role", "content")) for each in value
    )  # fmt: skip
    if not good:
        example = '[{"role": "user", "content": "Hi"}, ...]'
        raise UsageError(f'{where}: "{name}" must be{" a text or" * (name == "prompt")} messages like {example}')
    return value


def answer_of(where: str, value: Any, name: str) -> str:
    """An answer's text: as it is, or as the one message of the assistant."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0].get("content") if isinstance(value[0], dict) else None
    if not isinstance(value, str):
        raise UsageError(f'{where}: "{name}" must be the text of an answer')
    return value


def fitting(examples: Sequence[Any], lengths: Sequence[int], longest: int) -> tuple[list[Any], int]:
    """Those of at most so many tokens, and how many others there were.

    Errors: UsageError if none is left.
    """
    kept = [example for example, length in zip(examples, lengths) if length <= longest]
    if not kept:
        known = f"none of the {len(examples)} is within {longest} tokens (--length)" if examples else "no data at all"
        raise UsageError(f"no examples to learn from: {known}")
    return kept, len(examples) - len(kept)
