"""`tinyqwen train` beyond pretraining, as a person uses it: each stage learns, is resumed exactly, and is misused."""

from __future__ import annotations

import errno
import itertools
import json

import numpy as np
import pytest

from tests.checkpoints import assert_same_weights, log_of, weights_in, write_tiny_checkpoint
from tinyqwen.checkpoint import save
from tinyqwen.cli.main import main
from tinyqwen.runtime import load
from tinyqwen.train import saved

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
    assert_same_weights(tmp_path / "whole/step-000012", tmp_path / "cut/step-000012")


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
        ends.append(weights_in(out / "step-000012")["layers.0.mlp.up_proj.weight"].tobytes())
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


# ---- preferences --------------------------------------------------------------------------------------------------

PAIRS = [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in (("hi", "hello", "no"), ("ho", "hey", "x"))]
SUMS = [{"prompt": "one", "answer": "a"}, {"prompt": "two", "answer": "b"}, {"prompt": "three", "answer": "c"}]
ONLINE = (
    "--steps 12 --save-every 6 --warmup 2 --lr 0.003 --batch 2 --group 4 --answer 3 --backend numpy --seed 3".split()
)


@pytest.fixture(scope="module")
def more(model):
    write(model.parent / "pairs.jsonl", PAIRS)
    write(model.parent / "sums.jsonl", SUMS)
    rules = {"kind": "rules", "rules": {"avoids": ["e", "a"]}}
    write(model.parent / "rules.jsonl", [{"prompt": "hi", "verifier": rules}, {"prompt": "ho", "verifier": rules}])
    return model


def command(stage, model, out, data, *more):
    return ["train", stage, "--model", str(model), "--data", str(model.parent / data), str(out), *more]


def test_pairs_are_preferred_and_the_first_step_costs_ln_2(more, tmp_path):
    assert main(command("dpo", more, tmp_path / "out", "pairs.jsonl", *SMALL, "--quiet")) == 0
    lines = log_of(tmp_path / "out")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and lines[0]["margin"] == 0
    assert lines[-1]["accuracy"] == 1 and lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) > {"step", "loss", "margin", "accuracy", "chosen", "rejected", "norm", "lr", "seconds"}


@pytest.mark.parametrize("stage, steps", [("online-dpo", 30), ("grpo", 20)])
def test_what_is_rewarded_becomes_likelier(more, tmp_path, stage, steps):
    arguments = command(stage, more, tmp_path / "out", "rules.jsonl", *ONLINE, "--steps", str(steps), "--lr", "0.01")
    assert main([*arguments, "--quiet", "--group", "8", "--answer", "4", "--beta", "0.01"]) == 0
    rewards = [line["reward"] for line in log_of(tmp_path / "out")]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1
    assert {"differ", "finished", "length"} < set(log_of(tmp_path / "out")[0])


@pytest.mark.parametrize("stage", ["dpo", "online-dpo", "grpo", "reward"])
def test_every_stage_is_continued_exactly(more, tmp_path, stage, monkeypatch):
    """Interrupted in step 9, continued from step 6; online, both answers and what is learnt from them are the same."""
    online = stage in ("online-dpo", "grpo")
    how = [*ONLINE, "--updates", "2", "--beta", "0.05"] if online else SMALL
    arguments = command(stage, more, tmp_path / "whole", "rules.jsonl" if online else "pairs.jsonl", *how, "--quiet")
    assert main(arguments) == 0
    interrupt_after(9, monkeypatch)
    cut = [word.replace("/whole", "/cut") for word in arguments]
    assert main(cut) == 130
    monkeypatch.undo()
    assert main(cut) == 0
    assert_same_weights(tmp_path / "whole/step-000012", tmp_path / "cut/step-000012")
    first, second = (log_of(tmp_path / name) for name in ("whole", "cut"))
    assert [{**line, "seconds": 0} for line in first] == [{**line, "seconds": 0} for line in second]


def test_a_reward_model_judges(more, tmp_path, capsys):
    """It learns the pairs by heart, and is then asked in place of a verifier."""
    assert main(command("reward", more, tmp_path / "judge", "pairs.jsonl", *SMALL, "--quiet")) == 0
    assert log_of(tmp_path / "judge")[-1]["accuracy"] == 1
    judge = str(tmp_path / "judge/step-000012")
    write(more.parent / "prompts.jsonl", [{"prompt": "hi"}, {"prompt": "ho"}])
    for stage in ("online-dpo", "grpo"):
        out = tmp_path / stage
        assert main(command(stage, more, out, "prompts.jsonl", *ONLINE, "--reward", judge, "--quiet")) == 0
        assert len(log_of(out)) == 12
    assert main(command("grpo", more, tmp_path / "x", "prompts.jsonl", *ONLINE, "--reward", str(more))) == 3
    assert "is it a reward model?" in capsys.readouterr().err


def test_a_reward_models_head_cannot_be_merged_with_what_was_there_before(more, tmp_path, capsys):
    arguments = command("reward", more, tmp_path / "out", "pairs.jsonl", *SMALL, "--optimiser", "ondare")
    assert main([*arguments, "--pretrained", str(more)]) == 2
    assert "score.weight was not there before; take adamw or muon" in capsys.readouterr().err


def test_rejection_sampling_writes_what_the_next_stages_read(more, tmp_path, capsys):
    arguments = command(
        "sample", more, tmp_path / "out", "rules.jsonl", "--group", "8", "--answer", "6", "--backend", "numpy"
    )
    assert main([*arguments, "--at-least", "0.5"]) == 0
    assert "pairs.jsonl" in capsys.readouterr().out
    chats, pairs = ([json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]
                    for name in ("chats.jsonl", "pairs.jsonl"))  # fmt: skip
    assert all(chat["messages"][-1]["role"] == "assistant" for chat in chats)
    assert all("a" not in pair["chosen"].lower() or "e" not in pair["chosen"].lower() for pair in pairs)
    if pairs:
        assert main(["train", "dpo", "--model", str(more), "--data", str(tmp_path / "out/pairs.jsonl"),
                     str(tmp_path / "dpo"), *SMALL, "--quiet"]) == 0  # fmt: skip


@pytest.mark.parametrize(
    "stage, line, complaint",
    [
        ("dpo", {"prompt": "a", "chosen": "b"}, 'line 1: "rejected" must be the text of an answer'),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}, "line 1: chosen and rejected are the same answer"),
        ("grpo", {"prompt": "a"}, 'line 1: needs an "answer", or a "verifier"'),
        ("grpo", {"prompt": 3, "answer": "4"}, 'line 1: "prompt" must be a text or messages'),
        ("online-dpo", {"prompt": "a", "verifier": {"kind": "rules", "rules": {"nice": 1}}}, "line 1: no such rule"),
    ],
)
def test_lines_that_cannot_be_used_are_named(more, tmp_path, stage, line, complaint, capsys):
    write(tmp_path / "bad.jsonl", [line])
    arguments = ["train", stage, "--model", str(more), "--data", str(tmp_path / "bad.jsonl"), str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["weights", "moments"])
def test_a_disk_that_fills_up_while_saving_leaves_what_was_saved_before(model, tmp_path, capsys, monkeypatch, number):
    """Then there is room, and the run goes on."""
    out, write, calls = tmp_path / "out", saved.write_shards, itertools.count()
    interrupt_after(9, monkeypatch)
    assert main(arguments("sft", model, out, "--quiet")) == 130
    monkeypatch.undo()
    capsys.readouterr()

    def full(*what):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*what)

    with monkeypatch.context() as patch:
        for module in (save, saved):
            patch.setattr(module, "write_shards", full)
        assert main(arguments("sft", model, out, "--quiet")) == 6
    error = capsys.readouterr().err
    assert "the disk is full; nothing was saved" in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "step-000006"]
    assert main(arguments("sft", model, out, "--quiet")) == 0
    assert [line["step"] for line in log_of(out)] == list(range(1, 13))
