"""What a step learns from: whole conversations of the template's own ids, with the answers as targets."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
import pytest

from tinyqwen.chat_template import chatml
from tinyqwen.tiny.data import (
    AGAIN,
    FEW,
    HARDER,
    LATER,
    LENGTH,
    MISSING,
    SHARES,
    TELLING,
    Encoder,
    Mixture,
    conversation,
    packed,
)
from tinyqwen.tiny.generators import TASKS
from tinyqwen.tiny.seen import KEYS, seen
from tinyqwen.tiny.training import as_document, held_out
from tinyqwen.tiny.vocabulary import SIZE, write_tokenizer
from tinyqwen.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder, seed=0, count=2_000)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def test_the_tokenizer_is_qwen2s_in_small(tokenizer):
    assert tokenizer.size == SIZE
    assert tokenizer.control == {"<|endoftext|>": 1533, "<|im_start|>": 1534, "<|im_end|>": 1535}
    text = "What is 1234 + 5? Grüße, 你好 🙂 <|im_end|>\n\n  x"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and max(ids) < 1533
    pieces = [tokenizer.decode([number]) for number in tokenizer.encode("1234")]
    assert pieces == ["1", "2", "3", "4"]


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_what_the_chat_template_writes(encoder, task):
    for item in held_out(task, 3):
        one = as_document(encoder, item)
        whole = chatml([*item.messages, {"role": "assistant", "content": item.answer}], prompt=False)
        assert one.ids == encoder.tokenizer.encode_template(whole) or "<|im" in whole
        assert encoder.tokenizer.decode([one.ids[place] for place in one.targets], hide_control=False) == (
            f"{item.answer}<|im_end|>"
        )


def test_a_step_is_a_function_of_its_seed_and_rows_meet_their_targets(encoder):
    def step(seed):
        rng = np.random.default_rng(seed)
        documents = []

        def draw_one():
            documents.append(encoder.document(rng, Mixture(repeats=0.3, prose=0.1)))
            return documents[-1]

        return documents, *packed(draw_one, 2000)

    documents, one, token_N = step(3)
    assert [ids.tolist() for ids in step(3)[1:] if isinstance(ids, np.ndarray)] == [token_N.tolist()]
    assert token_N.tolist() == [document.ids[place] for document in documents for place in document.targets]
    assert one.token_T.tolist() == [number for document in documents for number in document.ids]
    assert all(span.stop - span.start <= LENGTH for span in one.spans)
    assert len(one.row_N) == len(token_N) and (one.token_T[one.row_N + 1] == token_N).all()


def test_repeats_come_again(encoder):
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = encoder.repeat(rng, 8)
        period = one.targets[0] - 1
        assert all(one.ids[place] == one.ids[place - period] for place in one.targets)


@pytest.mark.parametrize("seed", range(100))
def test_what_was_seen_is_what_came_before(encoder, seed):
    """The answer to each question begins with "The" if its word was there before, and with "I" if not."""
    words, before, asked = {word for words in KEYS for word in words}, set(), None
    for ids, learnt in seen(encoder, np.random.default_rng(seed)):
        text = encoder.tokenizer.decode(ids, hide_control=False)
        if learnt and asked is not None:
            right = "The" if asked in before else "I"
            assert text.startswith(encoder.tokenizer.decode(encoder.tokenizer.encode(right)[:1]))
            before.add(asked)
            asked = None
        elif not learnt and (keys := [word for word in re.findall(r"\w+", text) if word in words]):
            before |= {asked} - {None}
            asked = keys[0]


def test_what_was_said_in_one_item_is_not_asked_for_as_missing_in_the_next():
    rng = np.random.default_rng(0)
    lengths = {task: len(list(islice(conversation(rng, {task: 1}), 8))) for task in ("missing", "few", "codes", "add")}
    assert lengths == {"missing": 1, "few": 1, "codes": 1, "add": 8}
    assert {item.task for task in TELLING for item in [TASKS[task](rng)]} == set(TELLING)


@pytest.mark.parametrize("task", ("codes", "pairs", "dialogue", "town", "story"))
def test_exams_fit_in_the_context(encoder, task):
    assert max(len(as_document(encoder, item).ids) for item in held_out(task, 60)) <= LENGTH


def test_the_mixture_knows_every_task():
    assert set(SHARES) | {"missing"} == set(MISSING) and set(SHARES) | {"few"} == set(FEW)
    assert set(SHARES) | {"asked", "greet", "missing", "few"} == set(LATER) == set(HARDER) == set(AGAIN)
    assert set(HARDER) | {"unseen"} == set(TASKS)
