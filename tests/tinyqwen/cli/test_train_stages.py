"""`tinyqwen train` beyond pretraining, as a person uses it: each stage learns, is resumed exactly, and is misused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.cli.main import main
from tinyqwen.runtime import load
from tinyqwen.weights import Node, walk

SMALL = "--steps 12 --save-every 6 --warmup 2 --lr 0.01 --batch 4 --backend numpy".split()
CHATS = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
         for q, a in (("hi", "hello"), ("ho", "hey"), ("a", "b"), ("c", "d"), ("e", "f"))]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "model"
    folder.mkdir()
    write_tiny_checkpoint(folder)
    write(folder.parent / "chats.jsonl", CHATS)
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def arguments(stage, model, out, *more, data="chats.jsonl"):
    return ["train", stage, "--model", str(model), "--data", str(model.parent / data), str(out), *SMALL, *more]


def weights(folder):
    return {path: array for path, array in walk(open_checkpoint(folder).weights) if not isinstance(array, (Node, list))}


def assert_same(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys() and len(first) > 20
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path], err_msg=path)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---- fine-tuning --------------------------------------------------------------------------------------------------


def test_conversations_are_learnt(model, tmp_path, capsys):
    assert main(arguments("sft", model, tmp_path / "out", "--steps", "60")) == 0
    assert "5 conversations, 11 tokens to be learnt, 48.0 times in 60 steps" in capsys.readouterr().err
    lines = log_of(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"] / 5
    runtime = load(tmp_path / "out" / "step-000060", backend="numpy")
    running = runtime.start(runtime.encode_chat(CHATS[0]["messages"][:1]), max_new_tokens=20)
    running.sampling = type(running.sampling)()
    for _ in runtime.generate([running]):
        pass
    assert runtime.tokenizer.decode(running.new_ids) == "hello" and running.finish_reason == "stop"


@pytest.mark.parametrize("optimiser", ["adamw", "ondare", "onties", "muon"])
def test_a_run_that_is_continued_is_the_run_that_was_not_interrupted(model, tmp_path, optimiser, monkeypatch):
    """Interrupted in step 9, continued from step 6: with every optimiser."""
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    write_tiny_checkpoint(pretrained, seed=5)
    more = ["--quiet", "--optimiser", optimiser, "--pretrained", str(pretrained), "--alpha", "0.01"]
    assert main(arguments("sft", model, tmp_path / "whole", *more)) == 0
    interrupt_after(9, monkeypatch)
    assert main(arguments("sft", model, tmp_path / "cut", *more)) == 130
    monkeypatch.undo()
    assert main(arguments("sft", model, tmp_path / "cut", *more)) == 0
    assert_same(tmp_path / "whole/step-000012", tmp_path / "cut/step-000012")


def interrupt_after(steps, monkeypatch):
    from tinyqwen.train import saved

    log = saved.log

    def logged(out, report):
        log(out, report)
        if report.step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(saved, "log", logged)


def test_the_optimisers_differ(model, tmp_path):
    ends = []
    for optimiser in ("adamw", "ondare", "onties", "muon"):
        out = tmp_path / optimiser
        assert main(arguments("sft", model, out, "--optimiser", optimiser, "--pretrained", str(model), "--quiet")) == 0
        ends.append(weights(out / "step-000012")["layers.0.mlp.up_proj.weight"].tobytes())
    assert len(set(ends)) == 4


@pytest.mark.parametrize(
    "more, code, complaint",
    [
        (["--optimiser", "onties"], 2, "name the model before that"),
        (["--optimiser", "ondare", "--pretrained", "nowhere"], 3, "nowhere"),
        (["--keep", "0"], 2, "keep must be above 0"),
        (["--batch", "0"], 2, "batch must be at least 1"),
        (["--length", "5"], 2, "none of the 5 is within 5 tokens"),
    ],
)
def test_bad_arguments_get_one_line(model, tmp_path, more, code, complaint, capsys):
    assert main([*arguments("sft", model, tmp_path / "out"), *more]) == code
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_another_stage_is_another_run(model, tmp_path, capsys):
    assert main(arguments("sft", model, tmp_path, "--quiet")) == 0
    state = tmp_path / "step-000012/training/state.json"
    state.write_text(state.read_text().replace('"sft"', '"dpo"'))
    assert main(arguments("sft", model, tmp_path)) == 2
    assert "was begun with stage dpo, not sft: another folder?" in capsys.readouterr().err


# ---- upcycling ----------------------------------------------------------------------------------------------------


def test_a_dense_model_becomes_a_mixture_that_learns_on(model, tmp_path, capsys):
    sparse = tmp_path / "sparse"
    command = ["train", "upcycle", "--model", str(model), str(sparse), "--experts", "4", "--width", "10"]
    assert main([*command, "--scale", "dense"]) == 0
    assert "for a token" in capsys.readouterr().out
    assert load(sparse, backend="numpy").config.num_experts == 4
    chats = ["--data", str(model.parent / "chats.jsonl")]
    assert main(["train", "sft", "--model", str(sparse), *chats, str(tmp_path / "out"), *SMALL, "--quiet"]) == 0
    lines = log_of(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[0]["balance"] == pytest.approx(2, rel=0.5)
    assert main([*command]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--scale", "much"], ["--per-token", "99"], ["--reinitialised", "2"]])
def test_recipes_that_cannot_be_leave_nothing(model, tmp_path, more):
    assert main(["train", "upcycle", "--model", str(model), str(tmp_path / "out"), *more]) == 2
    assert not (tmp_path / "out").exists()
