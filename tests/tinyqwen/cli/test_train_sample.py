"""Rejection sampling that is killed, wherever that may be, and goes on."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.cli import train_sample
from tinyqwen.train import sampled


class Killed(BaseException):
    """As kill -9: nothing tidies up."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model and seven prompts, of which some earn something: three batches."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "model").mkdir()
    write_tiny_checkpoint(folder / "model")
    rules = {"kind": "rules", "rules": {"avoids": ["e"]}}
    lines = [{"prompt": word, "verifier": rules} for word in "one two three four five six seven".split()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def sample(tinyqwen, home, monkeypatch):
    """Runs the command."""
    monkeypatch.setattr(train_sample, "AT_ONCE", 3)

    def run(out, *more):
        return tinyqwen(
            "train", "sample", "--model", home / "model", "--data", home / "prompts.jsonl", out, "--group", 8,
            "--answer", 9, "--at-least", 0.5, "--backend", "numpy", *more,
        )  # fmt: skip

    return run


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def dies(monkeypatch, moment):
    """Let the process die at that moment: before a batch is judged, half-way in a write, or before it is renamed.

    Gives a list that grows with each moment.
    """
    moments = []

    def counted(function):
        def replaced(*arguments, **settings):
            moments.append(function.__name__)
            if len(moments) == moment:
                if function in (write_bytes, write_text):
                    path, content = arguments
                    with path.open("ab" if function is write_bytes else "w") as file:
                        file.write(content[: len(content) // 2])
                raise Killed
            return function(*arguments, **settings)

        return replaced

    def write_bytes(path, content):
        with path.open("ab") as file:
            file.write(content)

    write_text, replace, chosen = Path.write_text, Path.replace, train_sample.rollouts.chosen_lines
    monkeypatch.setattr(sampled, "append", lambda path, text: counted(write_bytes)(path, text.encode()))
    monkeypatch.setattr(Path, "write_text", counted(write_text))
    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", lambda path, **_: None)
    monkeypatch.setattr(train_sample.rollouts, "chosen_lines", counted(chosen))
    return moments


def test_killed_at_any_moment_it_goes_on_to_the_same_files(sample, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        moments = dies(patch, 0)
        assert sample(tmp_path / "whole")[0] == 0
    whole = files(tmp_path / "whole")
    assert len(moments) == 2 + 3 * 5 and set(whole) == {"chats.jsonl", "pairs.jsonl", "sampled.json"}
    assert all(len(content.splitlines()) >= 2 for content in whole.values()), "something to lose"
    for moment in range(1, len(moments) + 1):
        out = tmp_path / str(moment)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            dies(patch, moment)
            sample(out)
        code, said, err = sample(out)
        assert code == 0, err
        assert files(out) == whole, moments[moment - 1]
        assert f"{out / 'chats.jsonl'}: {len(whole['chats.jsonl'].splitlines())} of 7 prompts" in said


def test_a_run_that_is_complete_says_so_again(sample, tmp_path):
    first = sample(tmp_path / "out")
    before = files(tmp_path / "out")
    assert sample(tmp_path / "out") == first and files(tmp_path / "out") == before


def test_another_run_is_refused_and_leaves_what_is_there(sample, tmp_path):
    out = tmp_path / "out"
    sample(out)
    before = files(out)
    code, _, err = sample(out, "--seed", 1)
    assert code == 2 and "was begun with seed 0, not 1: another folder?" in err and len(err.splitlines()) == 1
    (out / "chats.jsonl").write_bytes(before["chats.jsonl"][:5])
    assert "is shorter than when it was written" in sample(out)[2]
    (out / "sampled.json").write_text("[]")
    assert "is not the state of a run" in sample(out)[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    code, _, err = sample(tmp_path / "other")
    assert code == 2 and "exists and is not empty" in err


def test_a_folder_in_which_nothing_was_asked_yet_binds_nobody(sample, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies(patch, 3)
        sample(tmp_path / "out")
    assert sample(tmp_path / "out", "--seed", 1)[0] == 0
    sample(tmp_path / "whole", "--seed", 1)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
