"""The same question in other words: what people put before and after it, words that mean the same, words left out.

A model that has seen each question in a few wordings learns those by heart. One that has seen it with little words
missing learns which words matter.
"""

from __future__ import annotations

import re

import numpy as np

from tinyqwen.tiny.generators.item import TEST_ONLY, Item, ask, chance, loosely, pick
from tinyqwen.tiny.generators.qwen2 import SHOWN, UNSEEN, fact
from tinyqwen.tiny.generators.small_talk import TALK

BEFORE = (
    "", "", "", "", "Please: ", "Can you tell me: ", "I want to know: ", "Quick question: ", "Hey, ", "Hi, ",
    "Tell me: ", "My question: ", "So, ", "OK, ", "And ", "Now: ", "Please tell me: ", "Do you know: ",
    "One more thing: ", "Well, ",
)  # fmt: skip
AFTER = (
    "",
    "",
    "",
    "",
    "",
    "",
    " Please.",
    " Thanks!",
    " Be brief.",
    " In one sentence.",
    " Do you know?",
    " Please tell me.",
)
GREETED = ("", "", "", "!", ".", "!!", " :)", ", TinyQwen", ", TinyQwen!", " again", ", friend", ", my friend!", " ...")
INTERJECTIONS = ("", "", "", "", "Oh, ", "Well, ", "OK, ", "Ah, ", "So, ", "Ha, ", "Good, ")
ALIKE = (
    ("made", "built", "developed", "created"), ("large", "big", "huge"), ("kind", "type", "sort"),
    ("explain", "describe", "define"), ("published", "released", "launched"), ("licence", "license"),
    ("benefit", "advantage", "point"), ("use", "have", "employ"), ("number", "count"), ("which", "what"),
)  # fmt: skip
LITTLE = set("what is the does do of in a an are has have which there on with to used use how it its and was".split())
GREETINGS = "hello", "thanks", "bye", "yes"


def bare_text(text: str) -> str:
    return text.lower().rstrip("?.! ")


EXAM = {bare_text(wording.format(size)) for wordings in UNSEEN.values() for wording in wordings for size in SHOWN}


def other_words(rng: np.random.Generator, text: str) -> str:
    """
    >>> other_words(np.random.default_rng(10), "Which activation does Qwen2 use?")
    'what activation does Qwen2 employ?'
    """
    drop = 0.3 if chance(rng, 0.5) else 0.0
    words = []
    for word in text.split(" "):
        bare = re.sub(r"\W", "", word).lower()
        alike = next((group for group in ALIKE if bare in group), None)
        if alike and chance(rng, 0.3):
            word = word.lower().replace(bare, pick(rng, alike))
        if not (bare in LITTLE and chance(rng, drop)):
            words.append(word)
    return " ".join(words) or text


def asked(rng: np.random.Generator) -> Item:
    """A fact, asked in other words; held out are the same wordings as of the plain task, and those of the exam."""
    plain = fact(rng)
    text = other_words(rng, plain.messages[-1]["content"])
    key = f"{TEST_ONLY}{text}" if bare_text(text) in EXAM else plain.key
    return plain._replace(task="asked", messages=ask(pick(rng, BEFORE) + text + pick(rng, AFTER)), key=key)


def greet(rng: np.random.Generator) -> Item:
    """Small talk in other words; held out are whole texts, not what they are made of."""
    name = pick(rng, list(TALK))
    answer, questions = TALK[name]
    wording = pick(rng, questions)
    if name.startswith(GREETINGS):
        text = pick(rng, INTERJECTIONS) + wording.rstrip("!. ") + pick(rng, GREETED)
    else:
        text = pick(rng, BEFORE) + other_words(rng, wording) + pick(rng, AFTER)
    text = loosely(rng, text)
    return Item("greet", ask(text), answer, f"greet: {text}")
