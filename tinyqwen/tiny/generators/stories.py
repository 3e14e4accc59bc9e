"""Stories of three sentences: prose, and an answer to who asks for one. Grammar and words are this project's own."""

from __future__ import annotations

import numpy as np

from tinyqwen.tiny.generators.item import Item, ask, loosely, pick

HEROES = "cat,dog,bird,fox,mouse,horse,fish,bear,hare,snail".split(",")
KINDS = "small,old,brave,lazy,clever,shy,happy,hungry".split(",")
PLACES = "in a garden,by the sea,in the forest,on a hill,near a mill,under a bridge,in the snow,by a lake".split(",")
FOUND = "a key,a lantern,a map,a red hat,a bell,a golden leaf,a book,a boat,a drum,a letter".split(",")
FELT = "glad,proud,surprised,tired,full of hope,very quiet".split(",")
ENDINGS = (
    "In the evening it gave {} to a friend.", "It kept {} for ever.", "It took {} home and slept well.",
    "But {} was too heavy, and so it left it there.", "From then on it was never without {}.",
    "The next day it lost {} again, and laughed.",
)  # fmt: skip


def story(rng: np.random.Generator) -> Item:
    """
    >>> story(np.random.default_rng(0)).answer
    'Once there was a happy mouse in the forest. One day it found a letter and was surprised. It kept the letter for ever.'
    """
    hero, kind, place, found, felt = (pick(rng, words) for words in (HEROES, KINDS, PLACES, FOUND, FELT))
    article = "an" if kind[0] in "aeiou" else "a"
    the = "the" + found[1:]
    text = (
        f"Once there was {article} {kind} {hero} {place}. One day it found {found} and was {felt}. "
        + pick(rng, ENDINGS).format(the)
    )
    wordings = f"Tell me a story about a {hero}.", f"A story about a {hero}, please.", f"Write a story about a {hero}."
    expect = rf"^Once there was an? \w+ {hero} .*\.$"
    return Item("story", ask(loosely(rng, pick(rng, wordings))), text, text, expect)
