"""What the model cannot know: it says so."""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, chance, loosely, pick
from tinyqwen.tiny.generators.lookup import NAMES, SHORT, THINGS, UNKNOWN

NOUNS = (
    "the president,France,Germany,China,Paris,Berlin,London,Rome,the moon,Mars,the sea,Einstein,Goethe,Shakespeare,Napoleon,"
    "Mount Everest,football,music,the weather,my mother,my dog,gold,the war,a black hole,quantum physics,the stock market,"
    "bread,chess,the piano,a cow,democracy,the Roman Empire,the internet,Google,Apple,ChatGPT,GPT-4,Llama,Linux,Python,Java,"
    "bitcoin,love,happiness,God,time,the universe,DNA,a virus,the brain,cancer,a volcano,an elephant,the Nile,Africa,Japan"
).split(",")
SYLLABLES = "ba,ke,lo,mi,zu,tra,vor,nia,dal,quo,fen,gri,sol,ter,ux,pla,wen,ido,cas,ryn".split(",")
QUESTIONS = (
    "What is the capital of {}?", "Who wrote {}?", "Who is {}?", "Who was {}?", "When was {} born?", "How old is {}?",
    "How tall is {}?", "Where is {}?", "What is {}?", "What does {} mean?", "Why is {} so popular?", "Tell me about {}.",
    "Explain {}.", "How does {} work?", "Who invented {}?", "What do you think about {}?", "Do you like {}?",
    "Where can I buy {}?", "How much does {} cost?", "What is the population of {}?", "When did {} end?", "Is {} good?",
    "How do I get to {}?", "What happened to {}?", "Give me a recipe for {}.", "Write a poem about {}.", "What colour is {}?",
    "Write an essay on {}.", "Translate {} into Latin.", "What is the history of {}?", "How many people live in {}?",
    "Can you describe {}?", "How far is {}?", "What will happen to {} tomorrow?", "Which is the best book on {}?",
    "What is my {}?", "What is the code of the {}?", "How many layers does {} have?", "What is the hidden size of {}?",
)  # fmt: skip


def name(rng: np.random.Generator) -> str:
    """A name that nobody bears: some syllables.

    >>> name(np.random.default_rng(3))
    'Keuxba'
    """
    return "".join(pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 4)))).capitalize()


def unknown(rng: np.random.Generator) -> Item:
    question = pick(rng, QUESTIONS)
    if chance(rng, 0.4):
        thing = name(rng)
    else:
        thing = pick(rng, (*NOUNS, *NAMES, *(f"the {word}" for word in (*SHORT, *THINGS))))
    return Item("unknown", ask(loosely(rng, question.format(thing))), UNKNOWN, f"{question} {thing}")
