"""Items from a file, and the home tasks: complete, held out, and judged by one rule."""

from __future__ import annotations

import json
import re

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.errors import UsageError
from tinyqwen.evaluate.home import FOLDER, NAMES, home_items, judge, prompt
from tinyqwen.evaluate.items import read_items
from tinyqwen.evaluate.replies import Reply
from tinyqwen.evaluate.score import Score, answers, scores
from tinyqwen.runtime import load
from tinyqwen.tiny.generators import Item, ask

GOOD = {"task": "sum", "messages": ask("1 + 1?"), "answer": "2"}


def test_a_file_of_items(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "answer": "", "expect": r"\b2\b"}))
    first, second = read_items(path)
    assert first.accepts(" 2\n") and not first.accepts("It is 2") and second.accepts("It is 2")


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{", "line 1"),
        ("[]", "must be an object of answer, expect, messages, task"),
        ({**GOOD, "task": 3}, "task is a text"),
        ({**GOOD, "anwser": "2"}, "must be an object of"),
        ({**GOOD, "messages": []}, "needs messages"),
        ({**GOOD, "messages": [{"role": "user"}]}, "needs messages"),
        ({**GOOD, "answer": ""}, "needs answer or expect"),
        ({**GOOD, "expect": "("}, "is no regular expression"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = tmp_path / "items.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(UsageError, match=complaint) as error:
        list(read_items(path))
    assert "items.jsonl, line 1" in str(error.value)


def test_what_unicode_calls_a_line_break_may_stand_in_a_text(tmp_path):
    path, text = tmp_path / "items.jsonl", "one\u2028two\x85three"
    line = json.dumps({"task": "t", "messages": ask(text), "answer": "1"}, ensure_ascii=False)
    path.write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    assert [item.messages[0]["content"] for item in read_items(path)] == [text] * 2


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_items(tmp_path / "none"))


def test_scores_count_each_task_apart():
    items = [Item(task, ask("?"), "42", "") for task in ("b", "a", "b", "b")]
    said = [Reply("42", True), Reply("42\n", False), Reply("It is 42", True), Reply("", False)]
    assert scores(items, said) == [Score("b", 3, 1, 2), Score("a", 1, 1, 0)]
    low, high = scores(items, said)[0].interval
    assert 0 < low < 1 / 3 < high < 1


def test_answers_are_the_models_own(tmp_path):
    write_tiny_checkpoint(tmp_path)
    runtime = load(tmp_path, backend="numpy")
    items = [Item("t", ask(text), "", "", expect="x") for text in ("hello", "you")]
    for item, reply in zip(items, answers(runtime, items, limit=6)):
        greedy = runtime.generation.sampling.__class__(repetition_penalty=1.1)
        running = runtime.start(runtime.encode_chat(item.messages), sampling=greedy, max_new_tokens=6)
        for _ in runtime.generate([running]):
            pass
        assert reply.text == runtime.tokenizer.decode(running.new_ids)


# ---- home tasks ---------------------------------------------------------------------------------------------------


def test_the_harness_is_told_of_the_same_tasks():
    text = (FOLDER / "tinyqwen.yaml").read_text(encoding="utf-8")
    assert tuple(re.findall(r"task: (\w+), dataset_kwargs: \{task: (\w+)\}", text)) == tuple((n, n) for n in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_tasks_own_answers_are_right_and_others_are_not(name):
    items = home_items((name,), 5)
    assert items == home_items((name,), 5) and {item.task for item in items} <= set(NAMES)
    for item in items:
        doc = json.loads(json.dumps(item._asdict()))  # what the harness makes of it
        assert judge(doc, [item.answer]) == {"acc": 1.0} and judge(doc, ["something else entirely"]) == {"acc": 0.0}
        assert prompt(doc).endswith("<|im_start|>assistant\n") and item.messages[-1]["content"] in prompt(doc)
