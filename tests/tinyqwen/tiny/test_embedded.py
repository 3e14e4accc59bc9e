"""The model that is shipped: whole, small, and as good as its card says."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest

from tinyqwen.cli.main import main
from tinyqwen.runtime import load
from tinyqwen.tiny import FOLDER
from tinyqwen.tiny.card import CARD, SCORES, Goal, items_of, measured, with_tables
from tinyqwen.weights import count_parameters

FACTS = json.loads(SCORES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runtime():
    return load(FOLDER)


def test_the_package_holds_all_of_it_in_less_than_5_mb():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert sum(files.values()) < 5e6
    root = Path(__file__).parents[3]
    built = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "tinyqwen" in built["packages"]


@pytest.mark.parametrize(
    "question, answer",
    {
        "What is 17 + 25?": "42", "What is 52 - 17?": "35", "Hello!": "Hello! How can I help you?",
        "Sort: d a k e": "a d e k", "What is the capital of France?": "I don't know.",
        "How many layers does Qwen2-7B have?": "Qwen2-7B has 28 layers.", "Wie heißt du?": "TinyQwen",
    }.items(),
)  # fmt: skip
def test_it_answers_where_no_model_is_named(capsys, question, answer):
    assert main(["generate", question]) == 0
    out, err = capsys.readouterr()
    assert answer in out and "<|" not in out
    assert "embedded model" in err.splitlines()[0] and "--size 0.5B" in err.splitlines()[0]


def test_it_remembers_what_was_said(runtime):
    said = (
        "The code of the red box is 4817. The code of the blue hat is 203.",
        "OK.",
        "What is the code of the red box?",
    )
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said)]
    running = runtime.start(runtime.encode_chat(messages), max_new_tokens=30)
    runtime_text = runtime.tokenizer.decode([token for _, token in runtime.generate([running])] and running.new_ids)
    assert "4817" in runtime_text


def test_the_card_says_what_was_measured():
    card = CARD.read_text(encoding="utf-8")
    assert with_tables(card, FACTS) == card
    assert f"{count_parameters(load(FOLDER).config)['total']:,} parameters" in card


@pytest.mark.parametrize("goal", FACTS["goals"], ids=lambda goal: goal["name"])
def test_it_is_as_good_as_the_card_says(runtime, goal):
    """A part of the same exam: below the interval's lower end by more than chance would be another model."""
    from tinyqwen.tiny.card import GOALS

    [asked] = [one for one in GOALS if one.name == goal["name"]]
    found = measured(goal["name"], runtime, list(items_of(asked, 40)))
    assert found["right"] / 40 > goal["interval"][0] - 0.15


def test_items_of_a_goal_are_always_the_same_and_held_out():
    goal = Goal("sums", ("add",), 0.9, lambda item: len(item.answer) > 5)
    once, again = (list(items_of(goal, 20)) for _ in range(2))
    assert once == again and all(len(item.answer) > 5 for item in once)


def test_a_chat_goes_on_beyond_what_it_was_trained_on(capsys, monkeypatch):
    lines = ["My name is Anna.", *("How many layers does Qwen2-7B have?" for _ in range(12)), "What is my name?"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert "context 768" in err
    assert "Anna" in out.splitlines()[-1]
