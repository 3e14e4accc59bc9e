"""`trace` on the command line: every view, every wrong use, and what it says of a real model and of shapes alone."""

import json

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tests.tinyqwen.trace.watching import MACHINE


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Two seconds saved in every test; that a machine can be measured is tested elsewhere."""
    monkeypatch.setattr("tinyqwen.cli.trace.limits_of", lambda backend: MACHINE)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Four layers, of which 1 and 3 have experts."""
    folder = tmp_path_factory.mktemp("sparse")
    write_tiny_checkpoint(
        folder, endless=True, model_type="qwen2_moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=13,
        shared_expert_intermediate_size=17, num_hidden_layers=4, decoder_sparse_step=2,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endless")
    write_tiny_checkpoint(folder, endless=True)
    return folder


# ---- what it shows ----


def test_a_model(tinyqwen, endless, tmp_path):
    target = tmp_path / "spans.jsonl"
    code, out, _ = tinyqwen("trace", "-m", endless, "--decode", 2, "--layer", 1, "--jsonl", target, "hello")
    assert code == 0 and "layers.1 and 0" in out and "toy, measured now: 10 GB" in out
    spans = [json.loads(line) for line in target.read_text().splitlines()]
    assert {span["phase"] for span in spans} == {"prefill", "decode"}
    assert {"path", "shape", "dtype", "time_s", "flops", "read", "floor_s", "bound"} <= set(spans[0])
    assert sum(span["path"] == "lm_head" for span in spans) == 3


@pytest.mark.parametrize("size", ["72B", "57B-A14B"])
def test_the_largest_models_on_shapes_alone(tinyqwen, size):
    code, out, _ = tinyqwen("trace", "--backend", "meta", "--size", size, "-q")
    assert code == 0 and "at best" in out and "floor" in out and "…" not in out


def test_a_run_watched_live_and_then_its_table(tinyqwen, endless):
    _, out, _ = tinyqwen("trace", "-m", endless, "--live", "--decode", 3, "--device", "h200", "-q", "hello")
    assert "of 512 tokens" in out and "total decode" in out and "h200 at best: 4800" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--view", "attention", "--layer", "2", "--head", "5"], "attention of layer 2"),
        (["--view", "attention"], "attention of layer 0"),
        (["--view", "route"], "router of layer 1"),
        (["--view", "route", "--layer", "3"], "router of layer 3"),
        (["--view", "lens"], "logit lens"),
        (["--view", "mem"], "Grouped queries: 6 heads share 2 KV heads"),
        (["--view", "rope"], "RoPE: 2 pairs"),
        (["--explain", "layers.1.mlp.gate"], "tinyqwen/blocks/moe.py:"),
        (["--explain", "layers.1.self_attn.attention.softmax"], "at 1, 32768"),
    ],
)
def test_every_view(tinyqwen, sparse, arguments, words):
    code, out, _ = tinyqwen("trace", "-m", sparse, "-q", "--decode", 2, *arguments, "hello [bold]world")
    assert code == 0 and words in out


@pytest.mark.parametrize("view", ["mem", "rope"])
def test_views_of_a_config_need_nothing_else(tinyqwen, view):
    for model in (["--backend", "meta", "--size", "72B"], ["--size", "2.5-7B"]):
        code, _, err = tinyqwen("trace", *model, "--view", view)
        assert (code, err) == (0, "")


def test_what_is_inside_an_operation_on_shapes_alone(tinyqwen):
    path = "layers.3.self_attn.attention.scores"
    code, out, _ = tinyqwen("trace", "--backend", "meta", "--size", "72B", "-q", "--explain", path)
    assert code == 0 and "GRTS 8x8x32x32 f32" in out


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--view", "attention", "--head", "6"], "heads 0 to 5"),
        (["--view", "attention", "--layer", "4"], "layers 0 to 3"),
        (["--view", "attention", "--layer", "all"], "name it"),
        (["--view", "route", "--layer", "2"], "the nearest are 1, 3"),
        (["--layer", "x"], "--layer must be a number or all"),
        (["--layer", "7"], "layers 0 to 3"),
        (["--decode", "0"], "--decode"),
        (["--head", "1"], "--view attention"),
        (["--view", "lens", "--backend", "meta"], "shapes alone"),
        (["--view", "mem", "--jsonl", "x"], "--view mem"),
        (["--chrome", "x", "--backend", "meta"], "times"),
        (["--live", "--backend", "meta"], "--live"),
        (["--device", "abacus"], "RTX 4090"),
        (["--explain", "self_attn.scores"], "layers.0.self_attn.attention.scores"),
        (["--explain", "layers.9.mlp.gate_proj"], "layers.0.mlp.gate_proj"),
    ],
)
def test_wrong_usage_is_one_clear_line_with_near_choices(tinyqwen, sparse, arguments, words):
    code, out, err = tinyqwen("trace", "-m", sparse, "-q", *arguments, "hi")
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "{folder}"], "no prompt"),
        (["-m", "{folder}", "--view", "route", "hi"], "dense"),
        (["--backend", "meta", "--size", "6B"], "2.5-7B"),
        (["--base", "hi"], "--base and --revision need to know of which model"),
    ],
)
def test_a_model_or_a_prompt_that_will_not_do_is_one_clear_line(tinyqwen, folder, arguments, words):
    code, out, err = tinyqwen("trace", "-q", *(word.format(folder=folder) for word in arguments))
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
