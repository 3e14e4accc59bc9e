"""Needles: what was said before, and only there.

    codes      The code of the red box is 481. ... What is the code of the red box?   -> The code of the red box is 481.
    pairs      fig: 42, rose: 17, ... What is rose?                                   -> rose: 17
    dialogue   My pet is a cat. / OK. / ... / What is my pet?                         -> Your pet is a cat.
    town       the haystack of `tinyqwen.needle`: sentences that never repeat, and the secret word of a town

Answers say the key again: what follows is then the text's own words once more, which is what a model learns first.
Several questions follow each text, and keys come with replacement: if each were asked once, the last ones could be
answered by elimination, and a model learns that instead. One question in ten is for what was not said.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise

import numpy as np

from tinyqwen.needle import IN_WORDS, SECRETS, TOWNS, text_sentences
from tinyqwen.tiny.generators.item import Item, Messages, ask, chance, loosely, pick

UNKNOWN = "I don't know."
SELDOM = 0.1  # a question is for what was not said
NEXT = "\n", " "
SYLLABLES = "ba,ke,lo,mi,zu,tra,vor,nia,dal,quo,fen,gri,sol,ter,ux,pla,wen,ido,cas,ryn".split(",")
COLOURS = "red,blue,green,black,white,yellow,brown,grey,pink,golden".split(",")
THINGS = "box,door,key,car,house,bag,book,room,ship,safe,cup,hat".split(",")
NAMES = "Anna,Ben,Clara,David,Emma,Felix,Greta,Hugo,Ida,Jonas,Lena,Max,Nora,Otto,Paul,Rosa,Tom,Vera".split(",")
SHORT = "fig,rose,sun,moon,tree,fish,bird,rain,snow,star,lake,hill,corn,milk,salt,wind,fire,iron,wood,leaf".split(",")
ABOUT_ME = {
    "name": NAMES,
    "favourite colour": COLOURS,
    "city": TOWNS,
    "pet": "a cat,a dog,a bird,a horse,a fish,a mouse,a rabbit,a snake".split(","),
    "favourite fruit": "apples,pears,plums,cherries,grapes,lemons,figs,melons".split(","),
    "drink": "tea,coffee,water,milk,juice,cocoa".split(","),
    "secret word": SECRETS,
    "friend": NAMES,
}


def name(rng: np.random.Generator) -> str:
    """A name that nobody bears: some syllables. What a model copies is not only what it knows.

    >>> name(np.random.default_rng(3))
    'Kemizu'
    """
    return "".join(pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 4)))).capitalize()


def turns(text: str, asked: list[tuple[str, str]], apart: bool, rng: np.random.Generator) -> Messages:
    """A text, and questions with their answers; the first one together with the text, or after an OK."""
    first = f"{text}{pick(rng, NEXT)}{asked[0][0]}" if not apart else text
    messages = ask(first) if not apart else [*ask(first), {"role": "assistant", "content": "OK."}, *ask(asked[0][0])]
    for (_, answer), (question, _) in pairwise(asked):
        messages += [{"role": "assistant", "content": answer}, *ask(question)]
    return messages


def lookup(
    rng: np.random.Generator, task: str, known: dict[str, str], text: str, question: str, missing: list[str],
    often: float,
) -> Item:  # fmt: skip
    """Questions for keys of a text."""
    asked = []
    for _ in range(int(rng.integers(1, 6))):
        absent = bool(missing) and chance(rng, often)
        key = pick(rng, missing if absent else list(known))
        asked.append((loosely(rng, question.format(key)), UNKNOWN if absent else known[key]))
    messages = turns(text, asked, chance(rng, 0.5), rng)
    return Item(task, messages, asked[-1][1], f"{text} {asked[-1][0]}")


def hay(rng: np.random.Generator, needles: list[str]) -> str:
    """Needles in this order among other sentences, how many being a matter of chance."""
    room = max(0, 12 - len(needles)) if chance(rng, 0.5) else 0
    sentences = list(islice(text_sentences(rng), int(rng.integers(room + 1))))
    places = np.sort(rng.integers(len(sentences) + 1, size=len(needles)))
    for place, needle in zip(places[::-1], needles[::-1]):
        sentences.insert(int(place), needle)
    return " ".join(sentences)


def some(rng: np.random.Generator, words: list[str], most: int) -> tuple[list[str], list[str]]:
    """A few of the words in random order, and the others."""
    order, count = rng.permutation(len(words)), int(rng.integers(1, most + 1))
    return [words[n] for n in order[:count]], [words[n] for n in order[count:]]


def codes(rng: np.random.Generator, often: float = SELDOM, most: int = 8) -> Item:
    keys, missing = some(rng, [f"{colour} {thing}" for colour in COLOURS for thing in THINGS], most)
    values = [str(rng.integers(10, 10_000)) if chance(rng, 0.6) else pick(rng, SECRETS) for _ in keys]
    text = hay(rng, [f"The code of the {key} is {value}." for key, value in zip(keys, values)])
    question = pick(rng, ("What is the code of the {}?", "Which code has the {}?", "Tell me the code of the {}."))
    answers = {key: f"The code of the {key} is {value}." for key, value in zip(keys, values)}
    return lookup(rng, "codes", answers, text, question, missing, often)


def pairs(rng: np.random.Generator, often: float = SELDOM, most: int = 12) -> Item:
    keys, missing = some(rng, SHORT if chance(rng, 0.8) else [name(rng) for _ in range(9)], most)
    kind = pick(rng, (lambda: str(rng.integers(10, 100)), lambda: pick(rng, NAMES), lambda: name(rng)))
    values = [kind() for _ in keys]
    text = ", ".join(f"{key}: {value}" for key, value in zip(keys, values))
    answers = {key: f"{key}: {value}" for key, value in zip(keys, values)}
    return lookup(rng, "pairs", answers, text, pick(rng, ("What is {}?", "{}?", "And {}?")), missing, often)


def dialogue(rng: np.random.Generator, often: float = SELDOM, most: int = 5) -> Item:
    """Said in turns of its own, with other words between."""
    keys, missing = some(rng, list(ABOUT_ME), most)
    known, messages = {key: pick(rng, ABOUT_ME[key]) if chance(rng, 0.8) else name(rng) for key in keys}, []
    for key, value in known.items():
        messages += [*ask(f"My {key} is {value}."), {"role": "assistant", "content": "OK."}]
    for _ in range(int(rng.integers(1, 4))):
        absent = bool(missing) and chance(rng, often)
        key = pick(rng, missing if absent else keys)
        answer = UNKNOWN if absent else f"Your {key} is {known[key]}."
        question = pick(rng, ("What is my {}?", "What did I say my {} was?", "Do you remember my {}?"))
        messages += [*ask(loosely(rng, question.format(key))), {"role": "assistant", "content": answer}]
    return Item("dialogue", messages[:-1], messages[-1]["content"], f"{known} {messages[-2]}")


def town(rng: np.random.Generator, often: float = SELDOM, most: int = 3) -> Item:
    words, (keys, missing) = IN_WORDS["text"], some(rng, TOWNS, most)
    known = {key: pick(rng, SECRETS) for key in keys}
    needles = [words.needle.format(key=key, answer=value).strip() for key, value in known.items()]
    answers = {key: words.slot.format(key=key) + f" {value}." for key, value in known.items()}
    text, question = words.intro + " " + hay(rng, needles), words.question.strip().replace("{key}", "{}")
    return lookup(rng, "town", answers, text, question, missing, often)


TASKS: dict[str, Callable[..., Item]] = {
    "codes": codes, "pairs": pairs, "dialogue": dialogue, "town": town,
}  # fmt: skip


def missing(rng: np.random.Generator) -> Item:
    """Any of them, half of them with two keys at most, but every second question is for what was not said."""
    task = pick(rng, list(TASKS.values()))
    return (task(rng, 0.5, 2) if chance(rng, 0.5) else task(rng, 0.5))._replace(task="missing")


def few(rng: np.random.Generator) -> Item:
    """The same in short: one or two keys, and little else."""
    while True:
        item = pick(rng, list(TASKS.values()))(rng, 0.5, 2)
        if len(item.messages[0]["content"]) < 150:
            return item._replace(task="few")
