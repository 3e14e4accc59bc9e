"""Was this word there before? Documents that lead from the easiest form of this question to a conversation's own.

    fig I rose I fig The              before: "The", as what is said of it begins; or not: "I", as in "I don't know."
    fig? I rose? I fig? The           the answer stands farther away, by up to the six tokens that end a user's turn
    fig rose sun leaf I rose The      all words come first, and then the questions
    fig: 42, rose: Anna, leaf I       each with a value
    What is leaf? I don't know.       the head of a user's turn; a question's words; the whole answer

A document has some of these, none or all. To look for a word and find nothing takes two parts of a model: one that
compares a word with all before it, and one that carries the outcome to where the answer begins. Neither lowers the loss
alone, so a conversation teaches neither. Here the first comes within some hundred steps, then the second, a token at a
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinyqwen.needle import SECRETS, TOWNS
from tinyqwen.tiny.generators.item import chance, pick
from tinyqwen.tiny.generators.lookup import ABOUT_ME, COLOURS, NAMES, SHORT, THINGS, UNKNOWN

if TYPE_CHECKING:
    from tinyqwen.tiny.data import Encoder

KEYS = SHORT, NAMES, TOWNS, COLOURS, THINGS, SECRETS, [word for word in ABOUT_ME if " " not in word]
VALUES = NAMES, SECRETS, SHORT, [str(number) for number in range(10, 100)]
BEFORE = "What is", "The", "What is my", "What is the code of the"


def seen(encoder: Encoder, rng: np.random.Generator) -> list[tuple[list[int], bool]]:
    """Parts of a document: ids, and whether they are to be learnt."""
    encode, end = encoder.tokenizer.encode, [encoder.im_end, *encoder.newline]
    way = rng.random()  # how far this document has come: so likely is each of its steps
    listed, valued, turns, asked, whole, apart = rng.random(6) < way
    words = rng.permutation(pick(rng, KEYS)).tolist()
    values, mark, before = pick(rng, VALUES), pick(rng, (":", " is", "")), encode(pick(rng, BEFORE)) if asked else []
    head = encoder.heads["user"] if turns else []
    tail = [*encode("?"), *end, *encoder.heads["assistant"]]
    tail = tail[: int(rng.integers(len(tail) + 1))] if apart else []
    known: dict[str, str] = {}
    parts: list[tuple[list[int], bool]] = []

    def say(word: str) -> list[int]:
        known[word] = pick(rng, values)
        return encode(f" {word}{mark} {known[word]}{pick(rng, ',.')}" if valued else f" {word}")

    if listed:
        for _ in range(int(rng.integers(1, min(6, len(words))))):
            parts.append((say(words.pop()), False))
        parts.append((end if chance(rng, 0.5) else [], False))
    for _ in range(int(rng.integers(4, 30))):
        old = bool(known) and (chance(rng, 0.5) or not words)
        if not old and not words:
            break
        word = pick(rng, list(known)) if old else words.pop()
        answer = UNKNOWN if not old else f"The value is {known[word]}." if valued else "The word is there."
        parts.append(([*head, *before, *encode(f" {word}"), *tail], False))
        parts += [(encode(answer), True), (end[:1], True), (end[1:], False)] if whole else [(encode(answer)[:1], True)]
        if not old and not listed:  # from now on it is known; with no value to tell, the question itself has said it
            said = say(word)
            parts += [(said, False)] if valued else []
    return parts
