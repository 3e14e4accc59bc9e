"""The data of the embedded model: conversations and repeats, packed into steps.

    conversation    ChatML: a few items of any tasks, one after another; what is learnt are the answers and <|im_end|>
    repeat          a random segment of ids, over and over; what is learnt is that it comes again (induction)
    prose           plain sentences; everything is learnt
    seen            words, and of each whether it has come before (`seen.py`)

Why answers only: questions are random, so nobody can predict them, and rows without a loss need no logits. Why repeats:
models learn to copy from them long before they would from needles alone.

What a step learns from is a function of the seed and the step's number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from tinyqwen.needle import SECRETS, text_sentences
from tinyqwen.step import Step, make_step
from tinyqwen.tiny.generators import TASKS, draw
from tinyqwen.tiny.generators.item import Item, Messages, chance, pick
from tinyqwen.tiny.generators.lookup import NAMES, SHORT
from tinyqwen.tiny.generators.lookup import TASKS as LOOKUPS
from tinyqwen.tiny.generators.strings import DIGITS, LETTERS
from tinyqwen.tiny.seen import seen
from tinyqwen.tokenizer import Tokenizer

LENGTH = 256  # tokens of a document at most
TELLING = *LOOKUPS, "missing", "few"  # tasks that tell things and ask for them
SYSTEMS = "You are a helpful assistant.", "You are TinyQwen.", "Be brief.", "Answer in few words."
SHARES: dict[str, float] = {
    "add": 10, "subtract": 10, "multiply": 4, "compare": 4, "parity": 2,
    "codes": 3, "pairs": 5, "dialogue": 3, "town": 3,
    "copy": 4, "reverse": 6, "sort": 8, "upper": 4, "first": 2, "last": 2, "dedupe": 4, "count": 4, "letters": 6,
    "numbers": 4, "neighbours": 3, "translations": 3,
    "facts": 10, "talk": 6, "unknown": 6, "programs": 5, "story": 1.5,
}  # fmt: skip
# Tasks of few words.
BRIEF = {name: share for name, share in SHARES.items() if name not in ("codes", "dialogue", "town", "story")}
# Most of the items ask for what was said or not, until it no longer makes up what was not.
MISSING = SHARES | {"missing": 500}
FEW = SHARES | {"few": 500}
# Questions in other words, too.
LATER = SHARES | {
    "facts": 5, "asked": 10, "talk": 4, "greet": 7, "sort": 9, "count": 3, "letters": 4, "few": 3, "missing": 12,
}  # fmt: skip
# More of what is not yet learnt, less of what is.
HARDER = LATER | {
    "subtract": 18, "multiply": 9, "parity": 1, "pairs": 6, "copy": 3, "reverse": 9, "sort": 18, "upper": 2, "first": 1,
    "last": 1, "numbers": 2, "neighbours": 4, "translations": 5, "facts": 5, "asked": 8, "talk": 4, "greet": 6,
    "dedupe": 6, "story": 1,
}  # fmt: skip
# What had to be learnt by heart was not known by then.
AGAIN = HARDER | {"facts": 16, "asked": 16, "unknown": 12, "subtract": 26}


class Mixture(NamedTuple):
    """What documents are drawn from: shares of the tasks, and of documents that are repeats, prose or `seen`."""

    shares: dict[str, float] = SHARES
    repeats: float = 0.1
    prose: float = 0.02
    longest: int = 24  # of the segments that are repeated
    seen: float = 0.0


class Document(NamedTuple):
    """Ids, and the places of those that are to be predicted from what is before them."""

    ids: list[int]
    targets: list[int]


def items(rng: np.random.Generator, shares: dict[str, float]) -> Iterator[Item]:
    """Items of the tasks, in those shares, without end."""
    names, share = list(shares), np.array(list(shares.values()))
    while True:
        yield draw(TASKS[names[int(rng.choice(len(names), p=share / share.sum()))]], rng)


def conversation(rng: np.random.Generator, shares: dict[str, float]) -> Iterator[Messages]:
    """Turns of items, an item at a time.

    A second item that tells things ends it: what the first has told would still be known, and "I don't know" would be
    wrong.
    """
    told = False
    for item in items(rng, shares):
        if item.task in TELLING:
            if told:
                return
            told = True
        yield turns_of(item)


def turns_of(item: Item) -> Messages:
    return [*item.messages, {"role": "assistant", "content": item.answer}]


class Encoder:
    """Makes documents of ids."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.end_of_text, self.im_start, self.im_end = (
            tokenizer.control[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        )
        self.newline = tokenizer.encode("\n")
        self.heads = {role: [self.im_start, *tokenizer.encode(f"{role}\n")] for role in ("system", "user", "assistant")}

        words = LETTERS, SHORT, NAMES, SECRETS, [*LETTERS, *SHORT, *NAMES]
        self.alphabets = [[tokenizer.encode(f" {word}")[0] for word in each] for each in words]
        self.alphabets += [[tokenizer.encode(digit)[0] for digit in DIGITS], list(range(tokenizer.size))]

    def turn(self, role: str, content: str) -> Document:
        """A turn of ChatML. The answers of the assistant are to be learnt, with the token that ends them."""
        head = self.heads[role]
        whole = [*head, *self.tokenizer.encode(content), self.im_end]
        return Document(whole + self.newline, list(range(len(head), len(whole))) if role == "assistant" else [])

    def chat(self, rng: np.random.Generator, shares: dict[str, float]) -> Document:
        """A conversation of one to eight items, as many as there is room for."""
        ids, targets = self.turn("system", SYSTEMS[0] if chance(rng, 0.9) else pick(rng, SYSTEMS))
        for turns in islice(conversation(rng, shares), int(rng.integers(1, 9))):
            parts = [self.turn(**turn) for turn in turns]
            if targets and len(ids) + sum(len(part.ids) for part in parts) > LENGTH:
                break
            for part in parts:
                targets = targets + [len(ids) + place for place in part.targets]
                ids = ids + part.ids
        return Document(ids[:LENGTH], [place for place in targets if place < LENGTH])

    def repeat(self, rng: np.random.Generator, longest: int) -> Document:
        alphabet = pick(rng, self.alphabets)
        segment = rng.choice(alphabet, int(rng.integers(3, longest + 1))).tolist()
        ids = segment * int(rng.integers(2, 5))
        return Document(ids, list(range(len(segment) + 1, len(ids))))

    def prose(self, rng: np.random.Generator) -> Document:
        text = " ".join(islice(text_sentences(rng), 8))
        ids = [self.end_of_text, *self.tokenizer.encode(text), self.end_of_text][:LENGTH]
        return Document(ids, list(range(1, len(ids))))

    def joined(self, parts: list[tuple[list[int], bool]]) -> Document:
        """A document of parts of which some are to be learnt."""
        ids, targets = [], []
        for part, learnt in parts:
            targets += range(len(ids), len(ids) + len(part)) if learnt else ()
            ids += part
        return Document(ids[:LENGTH], [place for place in targets if 0 < place < LENGTH])

    def document(self, rng: np.random.Generator, mixture: Mixture) -> Document:
        kind = rng.random()
        if kind < mixture.repeats:
            return self.repeat(rng, mixture.longest)
        if kind < mixture.repeats + mixture.prose:
            return self.prose(rng)
        if kind < mixture.repeats + mixture.prose + mixture.seen:
            return self.joined(seen(self, rng))
        return self.chat(rng, mixture.shares)


def packed(draw_one: Callable[[], Document], tokens: int) -> tuple[Step, np.ndarray]:
    """A step of about so many tokens, and the tokens to be predicted: row n's logits are of the nth of them."""
    parts, rows, begin = [], [], 0
    while begin < tokens:
        one = draw_one()
        parts.append((one.ids, None))
        rows += [begin + place - 1 for place in one.targets]
        begin += len(one.ids)
    step, row_N = make_step(parts), np.array(rows)
    return replace(step, row_N=row_N), step.token_T[row_N + 1]
