"""Needles: each haystack is as long, the needle as deep and the answer as hidden as promised, and a model's answer is
judged rightly: one that copies, one that copies only what is near, and one that says something else."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyqwen.generate
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import logits_of
from tinyqwen import needle as hidden
from tinyqwen.errors import UsageError
from tinyqwen.needle import IN_WORDS, PAIRS, ROOM, Frame, Reader, alphabet_of, frame_of, in_words, keys, wilson
from tinyqwen.runtime import load
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.ways import as_config

WORDS = list(IN_WORDS)
SEEDS, DEPTHS = st.integers(0, 2**40), st.floats(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-Instruct")
    write_tiny_checkpoint(folder, max_position_embeddings=4096)
    return folder


@pytest.fixture(scope="module")
def runtime(folder):
    return load(folder)


@pytest.fixture(scope="module", params=["bytes", "qwen2"])
def tokenizer(request, folder):
    if request.param == "bytes":
        return Tokenizer(folder)
    return Tokenizer(request.getfixturevalue("data") / "qwen2_tokenizer")


# ---- the texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", WORDS)
@given(seed=SEEDS, length=st.integers(400, 1500), depth=DEPTHS)
def test_a_text_is_as_long_and_its_needle_as_deep_as_asked(tokenizer, task, seed, length, depth):
    frame = Frame((1, 2, 3), (4, 5))
    question = in_words(task, tokenizer, frame, seed, length, depth)
    assert len(question.ids) + question.room == length and len(question.answer) <= question.room == ROOM
    assert question.ids[:3] == [1, 2, 3] and [4, 5] in (question.ids[n : n + 2] for n in range(-40, -1))
    assert question == in_words(task, tokenizer, frame, seed, length, depth), "a function of its arguments"

    start, stop = question.needle
    text = tokenizer.decode(question.ids)
    needle = tokenizer.decode(question.ids[start:stop])
    assert question.word in needle and question.word in tokenizer.decode(question.answer)
    assert text.count(question.word) == needle.count(question.word), "the answer stands nowhere else"
    first = len([*frame.head, *tokenizer.encode(IN_WORDS[task].intro)])
    hay = len(question.ids) - (stop - start) - first - (len(question.ids) - 1 - last_of_hay(tokenizer, question, task))
    sentence = max(len(tokenizer.encode(f" {word}")) for word in text.split(". ")[1:-1]) + 2
    assert abs(start - first - depth * hay) <= sentence / 2 + 1


def last_of_hay(tokenizer, question, task):
    """The place of the last token before the question."""
    mark = tokenizer.encode(IN_WORDS[task].question.split("{")[0])[:3]
    return max(n for n in range(len(question.ids)) if question.ids[n : n + 3] == mark) - 1


@pytest.mark.parametrize("task", WORDS)
def test_words_around_a_needle_are_cut_into_tokens_as_a_whole_text_is(tokenizer, task):
    """Sentences are encoded one by one; a model must not be able to tell."""
    question = in_words(task, tokenizer, Frame(), 3, 900, 0.5)
    begin = len(tokenizer.encode(IN_WORDS[task].intro)) + 40  # behind the sentence whose beginning is cut off
    text = tokenizer.decode(question.ids[begin:])
    assert tokenizer.encode(text) == question.ids[begin:]


@pytest.mark.parametrize("task", WORDS)
def test_other_seeds_and_depths_hide_other_answers_in_the_same_or_other_hay(tokenizer, task):
    ask = lambda seed, depth: in_words(task, tokenizer, Frame(), seed, 1000, depth)  # noqa: E731
    assert len({ask(seed, 0.5).word for seed in range(30)}) > 10
    deep, shallow = ask(0, 1.0), ask(0, 0.4)
    assert deep.ids[: shallow.needle[0]] == shallow.ids[: shallow.needle[0]], "all before the needle is shared"


def test_secrets_and_towns_are_in_no_hay():
    hay = " ".join([*hidden.WHEN, *hidden.WHO, *hidden.DID, *hidden.WHAT, *hidden.WHERE]).lower()
    assert not [word for word in (*hidden.SECRETS, *hidden.TOWNS) if word.lower() in hay]


@given(seed=SEEDS, length=st.integers(2 * PAIRS + 3, 300), depth=DEPTHS, letters=st.integers(3 * PAIRS, 400))
def test_keys_are_hidden_as_promised(seed, length, depth, letters):
    alphabet = range(1000, 1000 + letters)
    question = keys(seed, length, depth, alphabet)
    ids, [answer], (start, stop) = question.ids, question.answer, question.needle
    assert len(ids) + 1 == length and question == keys(seed, length, depth, alphabet)
    assert ids[start:stop] == [ids[-1], answer] and stop - start == 2
    assert ids.count(answer) == 1 and ids.count(ids[-1]) == 2
    assert start == round(depth * (length - 4))
    third = letters // 3
    kinds = [(token - 1000) // third for token in ids[:-1]]
    assert kinds.count(0) == kinds.count(1) == PAIRS and max(kinds) == 2
    assert all(kinds[n + 1] == 1 for n in range(length - 2) if kinds[n] == 0), "behind each key its value"


def test_what_has_no_room_is_refused(tokenizer):
    with pytest.raises(UsageError, match="question and answer alone take") as found:
        in_words("passkey", tokenizer, Frame(), 0, 20, 0.5)
    least = int(str(found.value).split()[-1])
    question = in_words("passkey", tokenizer, Frame(), 0, least, 0.5)
    assert len(question.ids) == least - ROOM, "the question without any hay"
    for length, letters in ((10, 30), (100, 11)):
        with pytest.raises(UsageError, match="keys need"):
            keys(0, length, 0.5, range(letters))


def test_a_frame_is_what_the_template_puts_around_a_message(runtime):
    frame = frame_of(runtime)
    message = runtime.tokenizer.encode("Where am I?")
    assert [*frame.head, *message, *frame.tail] == runtime.encode_chat([{"role": "user", "content": "Where am I?"}])
    assert frame_of(runtime, raw=True) == Frame()


# ---- how answers are judged ---------------------------------------------------------------------------------------


class Copier:
    """In place of `forward`: continues the longest end of the text that stood before, as an induction head would.

    sight   how far back it looks
    sure    the logit of what it says, where all others have 0
    """

    def __init__(self, sight=10**9, sure=20.0):
        self.sight, self.sure, self.texts, self.read = sight, sure, {}, 0

    def __call__(self, backend, config, weights, step):
        rows = []
        for span in step.spans:
            text = self.texts.setdefault(id(span.cache), [])
            del text[span.cache.length :]
            assert len(text) == span.cache.length, "a cache claims what was never read"
            text += step.token_T[span.start : span.stop].tolist()
            self.read += span.stop - span.start
            before = span.cache.length
            rows += [self.logits(config, text[: before + row - span.start + 1]) for row in step.row_N]
            span.cache.length = len(text)
        return np.array(rows, np.float32).reshape(len(rows), config.vocab_size)

    def logits(self, config, text):
        best, chosen, last = 0, 0, len(text) - 1
        for end in range(max(0, last - self.sight), last):
            same = 0
            while same <= end and text[end - same] == text[last - same]:
                same += 1
            if same >= best and same:
                best, chosen = same, text[end + 1]
        return [self.sure if token == chosen else 0.0 for token in range(config.vocab_size)]


@pytest.fixture
def play(monkeypatch):
    def play(model):
        monkeypatch.setattr(tinyqwen.generate, "forward", model)
        monkeypatch.setattr(hidden, "forward", model)
        return model

    return play


def question_of(task, runtime, length, depth, seed=1):
    if task == "keys":
        return keys(seed, length, depth, alphabet_of(runtime.tokenizer))
    return in_words(task, runtime.tokenizer, frame_of(runtime), seed, length, depth)


@pytest.mark.parametrize("task", hidden.TASKS)
def test_a_model_that_copies_finds_every_needle(runtime, play, task):
    play(Copier(sure=6.0))
    for depth in (0, 0.3, 1):
        question = question_of(task, runtime, 700, depth)
        found = Reader(runtime).ask(question)
        assert found.hit and found.rank == 1, runtime.tokenizer.decode(found.said)
        each = -math.log1p((runtime.tokenizer.size - 1) * math.exp(-6))
        assert found.logprob == pytest.approx(each * len(question.answer), rel=1e-4)


@pytest.mark.parametrize("task", hidden.TASKS)
def test_a_model_that_looks_300_tokens_back_finds_what_is_near(runtime, play, task):
    play(Copier(sight=300))
    hits = [Reader(runtime).ask(question_of(task, runtime, 900, depth)).hit for depth in (0, 0.5, 1)]
    assert hits == [False, False, True]


def test_what_is_almost_said_has_a_rank_and_a_probability(runtime, play):
    """A copier whose sureness is negative likes the right token least of all."""
    play(Copier(sure=-5.0))
    question = question_of("keys", runtime, 50, 0.5)
    found = Reader(runtime).ask(question)
    assert not found.hit and found.rank == runtime.tokenizer.size
    assert found.logprob == pytest.approx(-5 - math.log(runtime.tokenizer.size - 1 + math.exp(-5)), rel=1e-4)


def test_a_longer_number_that_contains_the_answer_is_no_hit(runtime):
    question, encode = question_of("passkey", runtime, 700, 0.5), runtime.tokenizer.encode
    is_hit = Reader(runtime).is_hit
    assert is_hit(question, encode(f" {question.word}."))
    assert is_hit(question, encode(f"It is **{question.word}**"))
    assert not is_hit(question, encode(f" {question.word}7"))
    assert not is_hit(question, encode(f" 1{question.word}"))
    assert not is_hit(question, encode(f" {question.word[:-1]}"))


@pytest.mark.parametrize("way", ["plain", "yarn=2", "dca=100,20", "dca=100,20,100", "window=30"])
@pytest.mark.parametrize("task", ["passkey", "keys"])
def test_likelihood_is_that_of_the_model_however_little_is_read_again(folder, task, way):
    """Against one pass over the whole text: the cache, what is reused of it and the way back change nothing."""
    runtime = load(folder, backend="numpy")
    config = as_config(way, replace(runtime.config, max_position_embeddings=100))
    runtime = replace(runtime, checkpoint=replace(runtime.checkpoint, config=config))
    reader = Reader(runtime)
    for depth in (1, 0.6, 0.1):
        question = question_of(task, runtime, 600, depth)
        found = reader.ask(question)
        logits_TV = logits_of(
            runtime.backend, config, runtime.checkpoint.weights, [*question.ids, *question.answer[:-1]]
        )[len(question.ids) - 1 :, : runtime.tokenizer.size].astype(np.float64)
        logprob_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        expected = sum(row[token] for row, token in zip(logprob_TV, question.answer))
        ranks = [1 + (row > row[token]).sum() for row, token in zip(logits_TV, question.answer)]
        assert found.logprob == pytest.approx(expected, rel=1e-3) and found.rank == max(ranks)
        if task == "passkey" and way != "window=30" and depth < 1:
            assert found.reused >= question.needle[0] - 20, "what lies before the needle is not read again"


def test_reuse_reads_half_as_much(runtime, play):
    model = play(Copier())
    reader, depths = Reader(runtime), (1, 0.75, 0.5, 0.25, 0)
    for depth in depths:
        assert reader.ask(question_of("passkey", runtime, 1000, depth)).hit
    once = model.read
    for depth in depths:
        Reader(runtime).ask(question_of("passkey", runtime, 1000, depth))
    assert once < 0.75 * (model.read - once)


def test_an_interrupt_leaves_a_reader_that_still_answers_rightly(runtime):
    """What was read of the interrupted text is not taken for the text before it."""
    first, second = (question_of("text", runtime, 1500, 0.5, seed) for seed in (1, 2))

    def stop():
        raise KeyboardInterrupt

    reader = Reader(runtime)
    fresh = reader.ask(first)
    with pytest.raises(KeyboardInterrupt):
        reader.ask(second, stop)
    assert reader.cache.length > 0
    again = reader.ask(first)
    assert again.said == fresh.said and again.logprob == pytest.approx(fresh.logprob)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_rate_and_solves_its_equation(case):
    hits, trials = case
    low, high = wilson(hits, trials)
    assert 0 <= low <= hits / trials <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:  # the rates from which what was found is 1.96 deviations away
        away = abs(hits / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert away == pytest.approx(1.96, rel=1e-6)
