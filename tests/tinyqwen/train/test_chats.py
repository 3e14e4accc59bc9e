"""What of a conversation is learnt; how sequences are laid end to end; which lines are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import byte_tokenizer_json
from tinyqwen.errors import UsageError
from tinyqwen.train import sft
from tinyqwen.train.chats import Example, Format, answered, in_parts, pack

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module")
def format(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()), encoding="utf-8")
    return Format(folder)


def turns(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents)]


def learnt_text(format, messages, **how):
    (ids,) = format.encode([messages])
    learnt_T = format.learnt(ids, **how)
    cuts = np.flatnonzero(np.diff(learnt_T.astype(int), prepend=0, append=0))
    pieces = [ids[a:b] for a, b in cuts.reshape(-1, 2)]
    return [format.tokenizer.decode(piece, hide_control=False) for piece in pieces]


def test_what_is_learnt(format):
    messages = turns("Hi", "Hello!", "Bye", "See you.")
    assert learnt_text(format, messages) == ["Hello!<|im_end|>", "See you.<|im_end|>"]
    assert learnt_text(format, messages, qwen_style=True) == [
        "<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>", "Hello!<|im_end|>\n<|im_start|>",
        "<|im_end|>\n<|im_start|>", "See you.<|im_end|>\n",
    ]  # fmt: skip


@given(st.lists(TEXT, min_size=2, max_size=5))
def test_answers_are_learnt_whole_whatever_they_say(format, contents):
    """Line breaks at an answer's beginning excepted: the tokenizer may join them with the one of the frame."""
    found = learnt_text(format, turns(*contents))
    normal = [format.tokenizer.decode(format.tokenizer.encode(content)) for content in contents[1::2]]
    assert [text.removesuffix("<|im_end|>").lstrip("\r\n") for text in found] == [x.lstrip("\r\n") for x in normal]
    assert all(text.endswith("<|im_end|>") for text in found)


def test_control_names_in_messages_are_text(format):
    assert learnt_text(format, turns("<|im_start|>assistant\nno<|im_end|>", "yes <|im_end|> no")) == [
        "yes <|im_end|> no<|im_end|>"
    ]


def test_many_conversations_at_once_are_each_what_they_are_alone(format, monkeypatch):
    """With a template, in processes for two of them each."""
    monkeypatch.setattr("tinyqwen.chat_template.AT_ONCE", 2)
    monkeypatch.setattr(format, "template", "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    all_of_them = [turns("a", "b"), turns("<|im_end|>", "c"), turns("d"), turns("e" * 9), turns("f", "g", "h")]
    assert format.encode(all_of_them) == [format.encode([one])[0] for one in all_of_them]
    assert [ids.count(format.end) for ids in format.encode(all_of_them)] == [2, 2, 1, 1, 3]


# ---- packing ------------------------------------------------------------------------------------------------------

EXAMPLE = st.tuples(
    st.lists(st.integers(0, 99), min_size=1, max_size=6), st.lists(st.integers(0, 99), min_size=1, max_size=6)
)


@given(st.lists(EXAMPLE, min_size=1, max_size=5))
def test_packed_rows_predict_the_answers(pairs):
    step, token_N, sequence_N = pack([answered(prompt, answer) for prompt, answer in pairs])
    assert token_N.tolist() == [token for _, answer in pairs for token in answer]
    assert sequence_N.tolist() == [n for n, (_, answer) in enumerate(pairs) for _ in answer]
    before = [(prompt + answer)[: len(prompt) + n][-1] for prompt, answer in pairs for n in range(len(answer))]
    assert step.token_T[step.row_N].tolist() == before
    assert [span.stop - span.start for span in step.spans] == [
        len(prompt) + len(answer) - 1 for prompt, answer in pairs
    ]
    assert all(step.position_T[span.start] == 0 for span in step.spans)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(0, 40))
def test_parts_are_everything_in_order_and_fit(lengths, most):
    parts = in_parts(lengths, most)
    assert [length for part in parts for length in lengths[part]] == lengths
    for part in parts:
        assert not most or sum(lengths[part]) <= most or part.stop - part.start == 1


# ---- files --------------------------------------------------------------------------------------------------------


def read(tmp_path, format, *lines, **settings):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return sft.read([path], format, sft.Settings(**settings))


def test_conversations_of_a_file(tmp_path, format):
    data = read(tmp_path, format, {"messages": turns("a", "b")}, "", {"messages": turns("c", "d" * 500)}, length=200)
    assert str(data) == "1 conversations (1 longer ones left out), 2 tokens to be learnt"
    assert format.tokenizer.decode(data.examples[0].ids).endswith("user\na\nassistant\nb\n")
    other = read(tmp_path, format, {"messages": turns("a", "c")})
    assert len({data.digest, other.digest, read(tmp_path, format, {"messages": turns("a", "c")}).digest}) == 2


@pytest.mark.parametrize(
    "line, complaint",
    [
        ({"text": "a"}, 'line 2: "messages" must be messages like'),
        ({"messages": [{"role": "user"}]}, 'line 2: "messages" must be messages like'),
        ({"messages": turns("a")}, "line 2: nothing to learn; no message is the assistant's"),
        ("{", "line 2: must be JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, format, line, complaint):
    with pytest.raises(UsageError, match=complaint):
        read(tmp_path, format, {"messages": turns("a", "b")}, line)


def test_nothing_left_to_learn_is_said(tmp_path, format):
    with pytest.raises(UsageError, match=r"none of the 1 is within 10 tokens \(--length\)"):
        read(tmp_path, format, {"messages": turns("a", "b")}, length=10)


# ---- learning -----------------------------------------------------------------------------------------------------


def test_parts_of_a_step_weigh_every_token_alike():
    """A long and a short answer: in one lesson, or in two."""
    examples = [Example([1, 2, 3, 4, 5], np.array([False, True, True, True, True])), answered([7, 8], [9])]
    (whole,) = sft.cut(examples, 0)
    first, second = sft.cut(examples, 3)
    log_p_N = -np.arange(1.0, 6)
    loss, coefficient_N, _ = whole.loss(log_p_N)
    losses = [first.loss(log_p_N[:4]), second.loss(log_p_N[4:])]
    assert loss == pytest.approx(sum(loss for loss, _, _ in losses))
    np.testing.assert_allclose(coefficient_N, np.concatenate([coefficient for _, coefficient, _ in losses]))
    assert (first.share, second.share) == (0.8, 0.2)
