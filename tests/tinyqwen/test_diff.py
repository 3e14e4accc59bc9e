"""`diff` finds each of the twelve bugs at its place, and calls rounding noise."""

from dataclasses import replace

import numpy as np
import pytest

import backends
from backends import Backend
from tests.checkpoints import write_tiny_checkpoint
from tests.goldens.make_goldens import FOLDER, NAMES, read_golden
from tests.helpers import tokens
from tinyqwen.blocks.linear import linear
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.config import FULL, SLIDING, DualChunk
from tinyqwen.diff import Golden, Model, compare, diff, difference, make_side, random_model
from tinyqwen.errors import UsageError
from tinyqwen.weights import tree
from walkthrough.bugs import BUGS

CONFIG, WEIGHTS = random_model("tiny")
PROMPT = tokens(CONFIG, 12)
RIGHT = Model("numpy", backends.get("numpy"), CONFIG, WEIGHTS)

# What the learner of lesson 11 is to find out.
PLACES = {
    "rope-neighbours": "prefill, layers.0.self_attn.rope",
    "rope-bfloat16": "prefill, rope_tables[0]",
    "decode-position": "decode 1, rope_tables[0]",
    "eps-outside": "prefill, layers.0.input_layernorm",
    "no-qkv-bias": "prefill, layers.0.self_attn.q_proj",
    "residual-after-norm": "prefill, layers.0.add",
    "heads-modulo": "prefill, layers.0.self_attn.attention.scores",
    "sees-next": "prefill, layers.0.self_attn.attention.scores",
    "window-plus-one": "prefill, layers.1.self_attn.attention.scores",  # layer 0 has no window
    "gate-up-swapped": "prefill, layers.0.mlp.swiglu",
    "softmax-after-top-k": "prefill, layers.1.mlp.gate.softmax",  # the first sparse layer
    "no-shared-gate": "prefill, layers.1.mlp.sigmoid_gate",
}


def wrong(name, config=CONFIG, weights=WEIGHTS):
    return Model(name, BUGS[name].backend, config, weights)


# ---- bugs ----


def test_there_are_twelve():
    assert len(BUGS) == 12 and BUGS.keys() == PLACES.keys()
    assert all(bug.story and bug.operation for bug in BUGS.values())


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_found_at_its_place(name):
    report = diff(RIGHT, wrong(name), PROMPT, decode=3)
    assert (report.verdict, report.at.where, report.first.where) == ("bug", PLACES[name], PLACES[name])
    assert PLACES[name] in report.reason


@pytest.mark.parametrize("name", BUGS)
def test_the_sides_may_change_places(name):
    assert diff(wrong(name), RIGHT, PROMPT, decode=1).at.where == PLACES[name]


@pytest.mark.parametrize(("name", "length"), [("decode-position", 12), ("window-plus-one", 4), ("sees-next", 1)])
def test_a_bug_that_the_prompt_does_not_reach_is_not_found(name, length):
    """Which is why the prompt should be longer than the window, and something should be decoded."""
    report = diff(RIGHT, wrong(name), PROMPT[:length], decode=0)
    assert (report.verdict, report.first) == ("same", None)
    assert diff(RIGHT, wrong(name), PROMPT, decode=1).verdict == "bug"


def test_a_bug_is_found_in_the_chunk_that_shows_it():
    report = diff(RIGHT, wrong("window-plus-one"), PROMPT, chunk=4, decode=0)
    assert report.at.where == "prefill 2, layers.1.self_attn.sliding_window_attention.attention_part.scores"


def test_float64_finds_the_place_that_float32_hid():
    """With large activations a wrong eps is 1e-5 of nothing: seen late in float32, where it is in float64."""
    config, tensors, ids, _ = read_golden("moe")
    weights = tree(tensors)
    report = diff(Model("numpy", backends.get("numpy"), config, weights), wrong("eps-outside", config, weights), ids)
    assert report.at.where == "prefill, layers.0.input_layernorm"
    assert report.first.where != report.at.where and report.first.where in report.reason
    assert report.at.max_rel < report.rtol


# ---- noise, and other weights ----


def test_the_same_side_twice_is_the_same_to_the_last_bit():
    report = diff(RIGHT, make_side("numpy", CONFIG, WEIGHTS), PROMPT)
    assert (report.verdict, report.reason) == ("same", "to the last bit")
    assert report.comparison.parted is None and report.comparison.predicted == 16
    assert not report.comparison.only_a and not report.comparison.only_b


def test_float32_against_float64_is_noise():
    double = make_side("numpy:float64", CONFIG, WEIGHTS)
    assert diff(RIGHT, double, PROMPT).verdict == "same"
    report = diff(RIGHT, double, PROMPT, rtol=1e-7)
    assert report.verdict == "noise" and report.first.max_rel > 1e-7
    assert {each.dtypes for each in report.comparison.differences if "gate[0]" not in each.path} == {
        ("float32", "float64")
    }


def backwards(dtype=None):
    """A linear layer that sums in the other order, perhaps like a kernel that knows one type only."""

    def body(backend, x_TI, weight_OI, bias_O=None):
        return linear.definition(backend, x_TI[:, ::-1], weight_OI[:, ::-1], bias_O).astype(dtype or backend.dtype)

    return body


@pytest.mark.parametrize("dtype", [None, np.float32])
def test_another_order_of_summing_is_noise(dtype):
    """Also where the other side cannot run in float64: then rounding of the definitions is the measure."""
    side = Model("backwards", Backend(np, {"linear": backwards(dtype)}), CONFIG, WEIGHTS)
    report = diff(RIGHT, side, PROMPT, rtol=1e-8)
    assert report.verdict == "noise"
    assert ("in float64 by" in report.reason) == (dtype is None)


def test_a_bug_in_float32_kernels_is_a_bug():
    bodies = {"linear": backwards(np.float32), "swiglu": BUGS["gate-up-swapped"].body}
    report = diff(RIGHT, Model("kernels", Backend(np, bodies), CONFIG, WEIGHTS), PROMPT)
    assert (report.verdict, report.at.where) == ("bug", "prefill, layers.0.mlp.swiglu")


def test_a_faster_body_has_no_inside_and_the_rest_is_compared():
    def closed(backend, x_TD, weights):
        x = x_TD @ weights.gate_proj.weight.T
        return (x / (1 + np.exp(-x)) * (x_TD @ weights.up_proj.weight.T)) @ weights.down_proj.weight.T

    report = diff(RIGHT, Model("closed", Backend(np, {"feed_forward": closed}), CONFIG, WEIGHTS), PROMPT)
    assert report.verdict == "same"
    assert "prefill, layers.0.mlp.swiglu" in report.comparison.only_a and not report.comparison.only_b


def test_rounded_weights_are_a_difference_of_the_weights_and_named():
    report = diff(RIGHT, make_side("numpy:bf16-weights", CONFIG, WEIGHTS), PROMPT)
    assert (report.verdict, report.at.where) == ("weights", "prefill, embed_tokens")
    assert "embed_tokens.weight" in report.reason


def test_a_bug_behind_rounded_weights_is_still_a_bug():
    rounded = make_side("numpy:bf16-weights", CONFIG, WEIGHTS)
    report = diff(RIGHT, replace(rounded, backend=BUGS["no-shared-gate"].backend), PROMPT)
    assert (report.verdict, report.at.where) == ("bug", PLACES["no-shared-gate"])


def test_weights_that_are_bfloat16_already_are_the_same(tmp_path):
    config = write_tiny_checkpoint(tmp_path, dtype="bfloat16")
    weights = open_checkpoint(tmp_path).weights
    sides = (make_side(name, config, weights) for name in ("numpy", "numpy:bf16-weights"))
    assert diff(*sides, [1, 2, 3]).reason == "to the last bit"


# ---- what is compared ----


def test_both_sides_decode_the_choices_of_side_a():
    found = compare(RIGHT, wrong("rope-neighbours"), PROMPT, decode=5)
    alone = compare(RIGHT, RIGHT, PROMPT, decode=5)
    assert found.decoded == alone.decoded and len(found.decoded) == 5
    step, after, a, b = found.parted
    assert step == "prefill" and 1 <= after <= 12 and a != b


def test_the_float64_test_runs_on_the_same_tokens():
    """Even where its own greedy choices are others."""
    fed = []

    class Fickle(Model):
        def step(self, ids, see):
            fed.append((str(self.backend.dtype), ids))
            return super().step(ids, see) + (self.backend.dtype == np.float64)

    b = Model("backwards", Backend(np, {"linear": backwards()}), CONFIG, WEIGHTS)
    diff(Fickle("fickle", backends.get("numpy"), CONFIG, WEIGHTS), b, PROMPT, rtol=1e-8)
    single, double = ([ids for dtype, ids in fed if dtype == each] for each in ("float32", "float64"))
    assert single == double and len(single) == 5


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_every_step_is_named_and_every_place_compared_once(chunk):
    found = compare(RIGHT, RIGHT, PROMPT, decode=2, chunk=chunk)
    chunks = -(-12 // chunk)
    steps = ["prefill", *(f"prefill {n}" for n in range(2, chunks + 1)), "decode 1", "decode 2"]
    assert list(dict.fromkeys(each.step for each in found.differences)) == steps
    where = [each.where for each in found.differences]
    assert len(set(where)) == len(where)
    assert {"prefill, layers.0.self_attn.rope#2", "decode 2, lm_head", "prefill, layers.4"} <= set(where)


def test_masks_and_what_is_not_a_number():
    inf, nan = np.inf, np.nan
    assert difference("s", "p", np.float32([1, -inf, nan]), np.float32([1, -inf, nan])).max_abs == 0
    for a, b in [([1, 2], [1, -inf]), ([1, nan], [1, 2]), ([inf, 1], [-inf, 1])]:
        assert difference("s", "p", np.float32(a), np.float32(b)).max_rel == inf
    assert difference("s", "p", np.zeros((2, 3)), np.zeros((3, 2))).max_rel == inf
    assert difference("s", "p", np.zeros((0, 3)), np.zeros((0, 3))).rms == 0
    assert difference("s", "p", np.array([1, 2]), np.array([1, 4])).max_rel == 0.5


# ---- goldens and transformers ----


@pytest.mark.parametrize("name", NAMES)
def test_goldens_agree_in_either_place_and_through_decoding(name):
    golden = Golden(FOLDER / f"{name}.npz")
    side = Model("numpy", backends.get("numpy"), golden.config, golden.weights)
    for a, b in ((side, golden), (golden, side)):
        report = diff(a, b, golden.ids, decode=20, chunk=5)
        assert report.verdict == "same"
        assert (report.comparison.parted, report.comparison.predicted) == (None, len(golden.ids) + 20)
        places = {each.path for each in report.comparison.differences}
        assert places >= {"embed_tokens", "layers.0", "norm", "lm_head"}
        assert diff(a, b, golden.ids, decode=3, rtol=1e-8).verdict == "noise"


def test_goldens_find_bugs_to_the_layer_and_in_the_text():
    golden = Golden(FOLDER / "moe.npz")

    def against(name):
        return diff(wrong(name, golden.config, golden.weights), golden, golden.ids, decode=8)

    assert against("no-qkv-bias").at.where == "prefill, layers.0"
    assert against("eps-outside").verdict == "bug", "only 18 times what rounding does"
    assert against("no-shared-gate").at.where == "prefill, layers.1", "layer 0 is dense"
    report = against("decode-position")  # a step of which goldens hold the token and no place
    assert report.verdict == "bug" and report.at is None and "decode" in report.reason


KINDS = {
    "dense": {},
    "untied": {"tie_word_embeddings": False},
    "window": {"sliding_window": 4, "layer_types": (SLIDING, FULL)},
    "experts": {
        "model_type": "qwen2_moe", "num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 13,
        "shared_expert_intermediate_size": 17,
    },
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_agrees(tmp_path, kind):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"the side transformers needs {name}: pip install 'tinyqwen[oracle]'")
    config = write_tiny_checkpoint(tmp_path, **KINDS[kind])
    weights = open_checkpoint(tmp_path).weights
    theirs = make_side("transformers", config, weights, tmp_path)
    ours = make_side("numpy", config, weights)
    ids = tokens(config, 12)
    report = diff(ours, theirs, ids, decode=4, chunk=5)
    assert report.verdict == "same" and report.comparison.parted is None
    assert any(each.where == "decode 4, lm_head" for each in report.comparison.differences)
    assert diff(ours, theirs, ids, rtol=1e-9).verdict == "noise"
    assert diff(wrong("heads-modulo", config, weights), theirs, ids).at.where == "prefill, layers.0"
    report = diff(wrong("decode-position", config, weights), theirs, ids)
    assert (report.verdict, report.at.where) == ("bug", "decode 1, layers.0")


@pytest.mark.oracle
def test_transformers_is_stretched_along(tmp_path):
    """With YaRN that config.json does not have, it agrees with ours; without, it does not."""
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"the side transformers needs {name}: pip install 'tinyqwen[oracle]'")
    config = write_tiny_checkpoint(tmp_path)
    weights, stretched = open_checkpoint(tmp_path).weights, config.with_yarn(3)
    ids = tokens(config, 12)
    ours = make_side("numpy", stretched, weights)
    assert diff(ours, make_side("transformers", stretched, weights, tmp_path), ids).verdict == "same"
    assert diff(ours, make_side("transformers", config, weights, tmp_path), ids).verdict == "bug"
    chunked = replace(config, dual_chunk_attention_config=DualChunk(64, 8))
    with pytest.raises(UsageError, match="transformers has no Dual Chunk Attention"):
        make_side("transformers", chunked, weights, tmp_path)
