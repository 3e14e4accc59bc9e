"""`tinyqwen train` as a person uses it: killed, continued, misused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.checkpoints import assert_same_weights, log_of, write_tiny_checkpoint
from tinyqwen.cli.main import main
from tinyqwen.runtime import load

SMALL = "--steps 30 --tokens 64 --length 16 --save-every 5 --warmup 3 --lr 0.01 --backend numpy".split()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_tiny_checkpoint(folder)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 30)
    return folder


def arguments(model, out, *more):
    data = str(model.parent / "text.txt")
    return ["train", "pretrain", "--model", str(model), "--data", data, str(out), *SMALL, *more]


def without_seconds(lines):
    return [{**line, "seconds": 0} for line in lines]


@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["from weights", "fresh"])
def test_it_learns_and_leaves_a_folder_that_talks(model, tmp_path, more, capsys):
    out = tmp_path / "out"
    assert main(arguments(model, out, *more)) == 0
    assert "662 tokens of text" in capsys.readouterr().err
    lines = log_of(out)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "step-000025", "step-000030"]
    runtime = load(out / "step-000030", backend="numpy")
    assert runtime.tokenizer.encode("cat") and runtime.stop_ids


def test_killed_ten_times_it_ends_with_the_weights_of_a_run_that_was_not(model, tmp_path):
    """SIGKILL, which no program can prepare for, at random moments: while it starts, learns or saves."""
    long = "--steps", "300", "--quiet"
    assert main(arguments(model, tmp_path / "whole", *long)) == 0
    out, rng, moments = tmp_path / "killed", random.Random(1), []
    command = [sys.executable, "-m", "tinyqwen", *arguments(model, out, *long)]
    while len(moments) < 10:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        saved, begin = max((int(path.name[5:]) for path in out.glob("step-*")), default=0), time.time()
        patience, more = begin + rng.choice([0.5, 60, 60, 60]), rng.randrange(1, 13)
        while process.poll() is None and time.time() < patience and not learning(out, saved + more, begin):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)  # a step takes some 0.01 s, and so does saving
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it must not have finished before"
        moments.append(len((out / "log.jsonl").read_text().splitlines()) if (out / "log.jsonl").exists() else 0)
    assert len(set(moments)) > 3, f"most kills come in the middle of learning, not after steps {moments}"
    assert main(arguments(model, out, *long)) == 0
    assert_same_weights(tmp_path / "whole/step-000300", out / "step-000300")
    assert without_seconds(log_of(out)) == without_seconds(log_of(tmp_path / "whole"))
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "step-000295", "step-000300"]


def learning(out, number, begin):
    """Whether a process that was started then has taken step `number`; the log may be that of one before it."""
    log = out / "log.jsonl"
    return log.exists() and log.stat().st_mtime > begin and len(log.read_text().splitlines()) >= number


def test_continuing_a_finished_run_does_nothing(model, tmp_path):
    out = tmp_path / "out"
    assert main(arguments(model, out, "--quiet")) == 0
    before = (out / "step-000030/model.safetensors").stat().st_mtime_ns
    assert main(arguments(model, out, "--quiet")) == 0
    assert (out / "step-000030/model.safetensors").stat().st_mtime_ns == before


def test_other_settings_or_data_are_another_run(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(model, out, "--quiet")) == 0
    assert main([*arguments(model, out), "--lr", "0.5"]) == 2
    assert "was begun with lr 0.01, not 0.5: another folder?" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("something else " * 30)
    assert main(arguments(model, out)) == 2
    assert "was begun with other data" in capsys.readouterr().err


def test_a_damaged_step_is_named(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(model, out, "--quiet")) == 0
    (out / "step-000030/training/moments.safetensors").write_bytes(b"short")
    assert main(arguments(model, out)) == 3
    assert "moments.safetensors: cannot be used" in capsys.readouterr().err


def test_on_a_terminal_the_loss_is_drawn_as_a_curve(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    assert main(arguments(model, tmp_path / "out")) == 0
    shown = capsys.readouterr().err
    assert "30/30" in shown and "\u2880" <= max(shown) < "\u2900" and "tokens/s" in shown
    assert main(arguments(model, tmp_path / "out", "--quiet")) == 0
    assert capsys.readouterr().err == ""


def test_every_line_of_json_is_a_step(model, tmp_path, capsys):
    assert main(arguments(model, tmp_path / "out", "--json")) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == log_of(tmp_path / "out")
    assert set(printed[0]) == {"step", "loss", "balance", "norm", "lr", "tokens", "seconds"}


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--length", "10"], "must be whole chunks of 10"),
        (["--save-every", "0"], "--save-every must be at least 1"),
        (["--data", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--threads", "9999", "--backend", "cpu"], "threads must be from 1"),
    ],
)
def test_bad_arguments_get_one_line(model, tmp_path, more, complaint, capsys):
    assert main([*arguments(model, tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_that_explodes_says_so_and_keeps_what_was_saved(model, tmp_path, capsys):
    out = tmp_path / "out"
    with np.errstate(all="ignore"):
        code = main(arguments(model, out, "--lr", "1e30", "--clip", "1e30"))
    assert code == 1 and "are not finite" in capsys.readouterr().err
