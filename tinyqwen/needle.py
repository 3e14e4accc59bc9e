"""A needle in a haystack: does a model find one fact that lies anywhere in a long text?

    head | intro | hay hay hay NEEDLE hay hay | question | tail | beginning of the answer   ->   answer
                   0 %         depth       100 %

Length and depth are chosen, all else follows from a seed. The answer stands once in the text and nowhere else, so it
cannot be known or guessed. Three haystacks:

    passkey    five sentences, over and over, and a number: the easiest, and the first to show a broken position
    text       sentences that never repeat, and the secret word of a town
    keys       ids without language: pairs key value among noise, then one of the keys again; for models trained on it

What a model says is one measure. How likely it found the answer is another: it moves long before the first word does.

Source: Mohtashami and Jaggi 2023, "Landmark Attention" (passkey); Kamradt 2023, "Needle in a haystack"; Hsieh et al.
2024, "RULER" (keys among other keys).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from backends import host
from tinyqwen.conversation import common_length
from tinyqwen.errors import UsageError
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.runtime import Runtime
from tinyqwen.sampling import Sampling
from tinyqwen.step import make_step
from tinyqwen.tokenizer import Tokenizer

TASKS = ("passkey", "text", "keys")
ROOM = 16  # tokens for an answer in words: they belong to the length, as an answer belongs to the context
PAIRS = 4  # of keys: the one that is asked for, and three that are not

Key = tuple[int, int, float]  # a question's seed, length and depth


class Question(NamedTuple):
    """One haystack with its needle, ready to be read.

    ids      the prompt: `length` tokens but for the answer's room
    answer   the ids that should come next
    word     the same as it would be recognised in a sentence; "" for ids without language
    needle   where it lies: the first of its ids, and the first behind it
    room     tokens that the answer may take
    """

    ids: list[int]
    answer: list[int]
    word: str
    needle: tuple[int, int]
    room: int


class Frame(NamedTuple):
    """What a chat template puts around a message, in ids. Empty for a model that continues text."""

    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()


def frame_of(runtime: Runtime, *, raw: bool = False) -> Frame:
    """The frame of a model's template: what two different messages have around them in common."""
    if raw or runtime.is_base:
        return Frame()
    a, b = (runtime.encode_chat([{"role": "user", "content": word}]) for word in ("one", "two"))
    head, tail = common_length(a, b), common_length(a[::-1], b[::-1])
    return Frame(tuple(a[:head]), tuple(a[len(a) - tail :]))


# ---- in words -----------------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """A task in words: its sentences, and the texts around them. {key} and {answer} are filled in.

    Parts are encoded one by one, and begin with a blank: a full stop and a line break would be one token.
    """

    intro: str
    needle: str
    question: str
    slot: str  # the beginning of the answer
    sentences: Callable[[np.random.Generator], Iterator[str]]
    fill: Callable[[np.random.Generator], dict[str, str]]


def passkey_sentences(rng) -> Iterator[str]:
    lines = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
    first = int(rng.integers(len(lines)))
    return (lines[n % len(lines)] for n in count(first))


WHEN = "At dawn,In the evening,Every spring,Long ago,On market day,After the rain,Late at night,Once a year".split(",")
WHO = "the baker,an old sailor,my neighbour,the miller,a young painter,the doctor,her uncle,a tall stranger".split(",")
DID = "carried,borrowed,repaired,sold,forgot,painted,counted,hid,found,admired,cleaned,wrapped".split(",")
WHAT = "a wooden box,two lanterns,the blue chair,a sack of flour,the church bell,an empty bottle,a map".split(",")
WHERE = "by the river,behind the mill,under the bridge,near the harbour,in the garden,at the station".split(",")
TOWNS = "Alderney,Brookfield,Carmine,Dunmore,Eastwick,Fairhaven,Glenrock,Holbeck,Inverness,Kirkwall".split(",")
SECRETS = (
    "pepper,violin,glacier,button,saddle,walnut,feather,copper,island,candle,thunder,velvet,lemon,anchor,marble,"
    "compass,ribbon,ginger,falcon,mirror,basket,cobalt,pebble,trumpet,willow,amber,kettle,meadow,needle,saffron"
).split(",")


def text_sentences(rng) -> Iterator[str]:
    while True:
        when, who, did, what, where = (pick(rng, words) for words in (WHEN, WHO, DID, WHAT, WHERE))
        yield f"{when} {who} {did} {what} {where}."


def pick(rng, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


IN_WORDS = {
    "passkey": Words(
        "There is an important piece of information in this text. Find it and remember it; you will be asked for it.\n",
        " The pass key is {answer}. Remember it. {answer} is the pass key.",
        " What is the pass key?",
        "The pass key is",
        passkey_sentences,
        lambda rng: {"answer": str(rng.integers(10_000, 100_000))},
    ),
    "text": Words(
        "Read this text. You will be asked a question about it.\n",
        " The secret word of {key} is {answer}.",
        " What is the secret word of {key}?",
        "The secret word of {key} is",
        text_sentences,
        lambda rng: {"key": pick(rng, TOWNS), "answer": pick(rng, SECRETS)},
    ),
}


def in_words(task: str, tokenizer: Tokenizer, frame: Frame, seed: int, length: int, depth: float) -> Question:
    """The question of that task, length and depth (0: before all hay, 1: behind it). Same arguments, same ids.

    The needle lies between two sentences, the pair of them that is nearest to its depth.
    Errors: UsageError for a length in which there is no room for hay.
    """
    words, rng = IN_WORDS[task], np.random.default_rng((seed, length, round(depth * 1e6)))
    found = words.fill(rng)
    intro, needle, question = (
        tokenizer.encode(text.format(**found)) for text in (words.intro, words.needle, words.question)
    )
    slot = words.slot.format(**found)
    begun = tokenizer.encode(slot if frame.tail else f" {slot}")
    answer = tokenizer.encode(f" {found['answer']}")
    before, behind = [*frame.head, *intro], [*question, *frame.tail, *begun]
    room = length - ROOM - len(before) - len(needle) - len(behind)
    if room < 0:
        raise UsageError(f"a length of {length} tokens is too short: question and answer alone take {length - room}")
    hay, gaps = haystack(words.sentences(np.random.default_rng((seed, length))), tokenizer, room)
    at = min(gaps, key=lambda gap: abs(gap - depth * room))
    start = len(before) + at
    ids = [*before, *hay[:at], *needle, *hay[at:], *behind]
    return Question(ids, answer, found["answer"], (start, start + len(needle)), ROOM)


def haystack(sentences: Iterator[str], tokenizer: Tokenizer, tokens: int) -> tuple[list[int], list[int]]:
    """That many tokens of sentences, and where one ends and the next begins. The first may lack its beginning."""
    ids, gaps, known = [], [], {}
    while len(ids) < tokens:
        gaps.append(len(ids))
        sentence = next(sentences)
        if sentence not in known:
            known[sentence] = tokenizer.encode(f" {sentence}")
        ids += known[sentence]
    cut = len(ids) - tokens
    return ids[cut:], sorted({0, tokens, *(gap - cut for gap in gaps if gap > cut)})


# ---- without language ---------------------------------------------------------------------------------------------


def keys(seed: int, length: int, depth: float, alphabet: Sequence[int]) -> Question:
    """Pairs key value among noise, then a key: its value is the answer. ids + answer are a text of that length.

    alphabet   the ids in use: a third of them are keys, a third values, a third noise

    >>> question = keys(0, 14, 0.5, range(30)); question.ids, question.answer, question.needle
    ([26, 0, 14, 6, 17, 7, 19, 23, 20, 3, 13, 25, 7], [19], (5, 7))
    """
    third, body = len(alphabet) // 3, length - 2
    if third < PAIRS or body < 2 * PAIRS + 1:
        raise UsageError(f"keys need a length of at least {2 * PAIRS + 3} and {3 * PAIRS} ids; there are {length} and "
                         f"{len(alphabet)}")  # fmt: skip
    noise = np.random.default_rng((seed, length)).integers(2 * third, 3 * third, body)
    rng = np.random.default_rng((seed, length, round(depth * 1e6)))
    at = round(depth * (body - 2))
    others = [place for place in range(at % 2, body - 1, 2) if place != at]  # every second one: pairs never overlap
    places = [at, *rng.choice(others, PAIRS - 1, replace=False)]
    names, values = (rng.choice(third, PAIRS, replace=False) for _ in range(2))
    for place, name, value in zip(places, names, values + third):
        noise[place : place + 2] = name, value
    ids = [alphabet[letter] for letter in (*noise, names[0])]
    return Question(ids, [alphabet[third + values[0]]], "", (at, at + 2), 1)


def alphabet_of(tokenizer: Tokenizer) -> list[int]:
    """All ids but those of control tokens."""
    control = set(tokenizer.control.values())
    return [token for token in range(tokenizer.size) if token not in control]


# ---- asking -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """How a model answered.

    hit       the answer stands in what it said (keys: is what it said)
    rank      of the answer's tokens, the worst place among all tokens; 1: each is the likeliest
    logprob   of the whole answer, natural logarithm
    said      the ids that it said, chosen greedily
    reused    how many tokens of the prompt were known from the question before
    """

    hit: bool
    rank: int
    logprob: float
    said: list[int]
    reused: int


class Reader:
    """Puts questions to a model, and keeps what it has read: a question with the same beginning reads only the rest.

    Questions of one haystack are best asked from the deepest needle up: what comes before a needle is then known.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.cache: KVCache = runtime.cache()
        self._read: list[int] = []

    def ask(self, question: Question, watch: Callable[[], None] = lambda: None) -> Found:
        """The model's answer. `watch` is called after each step."""
        ids, known = question.ids, min(self.cache.length, common_length(question.ids, self._read))
        reused = rewind(self.cache, min(known, len(ids) - 1))
        self._read = []  # whatever happens meanwhile
        running = self.runtime.start(ids, cache=self.cache, sampling=Sampling(), max_new_tokens=question.room)
        for _ in self.runtime.generate([running]):
            watch()
        rank, logprob = self.likelihood(question)
        self._read = ids
        return Found(self.is_hit(question, running.new_ids), rank, logprob, running.new_ids, reused)

    def likelihood(self, question: Question) -> tuple[int, float]:
        """Rank and log-probability of the answer, read as if the model had said it."""
        runtime, answer = self.runtime, question.answer
        text = [*question.ids, *answer[:-1]]
        known = rewind(self.cache, len(question.ids) - 1)
        runtime.checkpoint.check_unchanged()
        step = make_step([(text[known:], self.cache)], all_logits=True)
        logits_NV = forward(runtime.backend, runtime.config, runtime.checkpoint.weights, step)[-len(answer) :]
        logits_NV = host(logits_NV)[:, : runtime.tokenizer.size].astype(np.float32)
        rank, logprob = 1, 0.0
        for logits_V, token in zip(logits_NV, answer):
            largest = logits_V.max()
            rank = max(rank, 1 + int((logits_V > logits_V[token]).sum()))
            logprob += float(logits_V[token] - largest) - math.log(float(np.exp(logits_V - largest).sum()))
        return rank, logprob

    def is_hit(self, question: Question, said: list[int]) -> bool:
        if not question.word:
            return said[: len(question.answer)] == question.answer
        text = self.runtime.tokenizer.decode(said)
        return re.search(rf"(?<!\w){re.escape(question.word)}(?!\w)", text) is not None


def rewind(cache: KVCache, length: int) -> int:
    """Forget all behind that many tokens; all, where windows do not reach back so far. Returns what is left."""
    cache.length = length if cache.keeps(length) else 0
    return cache.length


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Between which rates the true one lies, 95 times of 100: Wilson's interval, sound for few trials and at 0 and 1.

    >>> [round(bound, 3) for bound in wilson(10, 10)], [round(bound, 3) for bound in wilson(1, 2)]
    ([0.722, 1.0], [0.095, 0.905])
    """
    rate, weight = hits / trials, z * z / trials
    middle = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / trials / 4)
    return (middle - half if hits else 0.0), (middle + half if hits < trials else 1.0)
