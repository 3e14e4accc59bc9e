"""`tinyqwen eval` as a person uses it. (The harness' tasks: tests/oracle/test_harness.py.)"""

import importlib.util
import json

import pytest

from tests.checkpoints import write_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-Instruct")
    write_tiny_checkpoint(folder, max_position_embeddings=4096)
    return folder


@pytest.fixture
def run(folder, tinyqwen):
    return lambda *more: tinyqwen("eval", "--model", folder, "--backend", "numpy", *more)


def test_home_tasks_are_asked_and_counted(run, tmp_path):
    code, out, err = run("--tasks", "home:add,home:copy", "--limit", "3", "--json", tmp_path / "found.json")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["add", "copy"]
    facts = json.loads((tmp_path / "found.json").read_text())
    assert [(task["task"], task["asked"]) for task in facts["tasks"]] == [("add", 3), ("copy", 3)]
    assert len(facts["items"]) == 6 and {"messages", "said", "right", "ended"} <= set(facts["items"][0])
    assert facts["model"].startswith("tiny-Instruct") and facts["backend"] == "numpy"


def test_items_of_ones_own(run, tmp_path):
    line = {"task": "mine", "messages": [{"role": "user", "content": "hello"}]}
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({**line, "expect": expect}) + "\n" for expect in ("^", "never said")))
    code, out, _ = run("--items", path, "--json", "-")
    [score] = json.loads(out)["tasks"]
    assert code == 0 and (score["task"], score["asked"], score["right"]) == ("mine", 2, 1)


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--tasks", "home:knitting"], "home:knitting is no home task; there are add, "),
        (["--tasks", "home,mmlu"], "asked apart"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--items", "nowhere"], "nowhere: cannot be read"),
    ],
)
def test_bad_arguments_get_one_line(run, more, complaint):
    code, _, err = run(*more)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_without_the_harness_its_tasks_are_refused_in_one_line(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    code, _, err = run("--tasks", "mmlu")
    assert code == 2 and err.count("\n") == 1
    assert "mmlu is a task of lm-evaluation-harness, which is not installed: pip install 'tinyqwen[eval]'" in err
