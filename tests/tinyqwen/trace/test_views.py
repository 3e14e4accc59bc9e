"""The views: true numbers, any width, every kind of model, and no text that could be taken for an instruction."""

import io
import tracemalloc

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import backends
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import CONFIGS, dense_config, moe_config, small_weights, tokens
from tests.tinyqwen.trace.test_capture import MANY, captured, start
from tests.tinyqwen.trace.test_trace import MACHINE
from tinyqwen.cli.main import main
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.plan import OPENED, longest_context, memory, on_shapes, shape_weights, wavelengths
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.trace.attention_maps import attention_maps, attention_weights
from tinyqwen.trace.capture import capture
from tinyqwen.trace.explain import ROOT, at_sizes, formula, operations, print_explain, source
from tinyqwen.trace.explain import SIZES as EXPLAINED
from tinyqwen.trace.lens import lens
from tinyqwen.trace.record import closed, record
from tinyqwen.trace.routing import routers, routing
from tinyqwen.trace.table import si
from tinyqwen.trace.views import SHADES, pooled, print_attention, print_bars, print_lens, print_map, print_route
from tinyqwen.trace.views_of_plans import print_memory, print_rope
from tinyqwen.weights import count_parameters, random_weights

BACKEND = backends.get("numpy")
NASTY = "\u202e\x1b[b]你好[/b]\n\t"


def spell(token):
    return f"{token}{NASTY}"


def printed(width, view, *data, **settings):
    console = Console(file=io.StringIO(), width=width)
    view(console, *data, **settings)
    return console.file.getvalue()


def fits(text, width):
    lines = text.splitlines()
    assert lines and max(map(cell_len, lines)) <= width
    assert "\x1b" not in text and "\u202e" not in text and "…" not in text
    return lines


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Two seconds saved in every test of the command; that a machine can be measured is tested elsewhere."""
    monkeypatch.setattr("tinyqwen.cli.trace.limits_of", lambda backend: MACHINE)


WIDTHS = pytest.mark.parametrize("width", [80, 100])


# ---- of values ----------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
@pytest.mark.parametrize("sequence", [0, 1])
def test_attention(name, width, sequence):
    config = CONFIGS[name]
    sequences, steps = captured(config, chunk=6)
    maps, ids, G = attention_maps(steps, 1), sequences[sequence].ids, config.num_key_value_heads
    text = printed(width, print_attention, maps, ids, spell, layer=1, head=4, kv_heads=G, sequence=sequence)
    lines = fits(text, width)
    assert "[b]" in text and "␛" in text, "what a token says is text"
    assert "h3 " in text and "h5 " in text and "h2 " not in text, "the heads that share a KV head, and no others"
    rows = [line for line in lines if line[:5].strip().isdecimal() and line[-1] in SHADES[1:]]
    assert len(rows) >= len(ids) - 1
    assert "(decode)" in text


def test_shades_stand_for_their_weights():
    weights_TS = np.float32([[1, 0, 0], [0.01, 0.99, 0], [0.05, 0.2, 0.75]])
    lines = printed(80, print_map, weights_TS, [1, 2, 3], str).splitlines()[1:]
    assert [line[18:].strip("\n") for line in lines] == ["██", "  ██", "░░▒▒██"]


def test_long_sequences_are_pooled_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    weights_TS = rng.dirichlet(np.ones(700), 60)
    for columns in (2, 50, 63):
        pool = pooled(weights_TS, columns)
        assert pool.shape == (60, columns)
        np.testing.assert_allclose(pool.sum(-1), 1)
        assert np.array_equal(pool[:, 0], weights_TS[:, 0])
    text = printed(80, print_map, weights_TS, list(range(700)), str)
    fits(text, 80)
    assert "the last 40 of 60 queries" in text and "700 keys in 62 columns" in text and " 699 699" in text


def test_bars_are_the_heaviest_keys_in_their_order():
    weights_S = np.zeros(30)
    weights_S[[3, 20, 7]] = 0.5, 0.3, 0.2
    lines = printed(80, print_bars, weights_S, list(range(30)), str, count=3).splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [["3", "3", "0.500"], ["7", "7", "0.200"], ["20", "20", "0.300"]]
    assert lines[0].count("█") > lines[2].count("█") > lines[1].count("█") and "0.000" in lines[3]


@WIDTHS
def test_attention_of_a_long_prompt_looks_at_its_end(width):
    (running,), steps = captured(dense_config(), attention_weights(0), prompts=((300, 0),))
    text = printed(width, print_attention, attention_maps(steps, 0), running.ids, str, layer=0, kv_heads=2)
    fits(text, width)
    assert "the last 256 queries, 304 keys" in text and "the last 40 of 256 queries" in text and "\n 303 " in text


@WIDTHS
@pytest.mark.parametrize("prompts", [((7, 0),), MANY])
@pytest.mark.parametrize("name", ["moe", "moe-normalised"])
def test_route(name, width, prompts):
    _, steps = captured(CONFIGS[name], prompts=prompts, chunk=6)
    route = routing(steps)[1]
    text = printed(width, print_route, route, spell)
    fits(text, width)
    load = route.load_E
    assert f"busiest {load.argmax()}: {load.max()}" in text and f"of {len(route.token_T)} tokens" in text
    first = f"{route.expert_TA[0, 0]}:{route.weight_TA[0, 0]:.2f}".replace("0.", ".")
    assert first in text and f"{route.gate_T[0]:.2f}" in text
    assert ("2/0" in text) == (len(prompts) > 1)


def test_ties_are_flagged():
    """A router of zeros finds all experts alike."""
    config = moe_config()
    weights = small_weights(config)
    weights.layers[1].mlp.gate.weight[:] = 0
    route = routing(capture(BACKEND, config, weights, start(config), routers))[1]
    assert route.tied_T.all() and printed(80, print_route, route, str).count(" tie ") == len(route.token_T)
    assert "8 idle" not in printed(80, print_route, route, str) and "5 idle" in printed(80, print_route, route, str)


@WIDTHS
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
def test_lens(name, width):
    config = CONFIGS[name]
    sequences, steps = captured(config, chunk=6)
    found = lens(BACKEND, config, small_weights(config), steps)
    for number, running in enumerate(sequences):
        text = printed(width, print_lens, found, running.ids, spell, sequence=number)
        lines = fits(text, width)
        mine = [one for one in found if one.sequence == number]
        rows = [line for line in lines if line.split()[0].isdecimal() and "later" not in line]
        assert len(rows) == config.num_hidden_layers
        across = (width - 6) // 19
        for layer, line in enumerate(rows):
            assert line.count("> ") == sum(bool(one.flip_L[layer]) for one in mine[:across])
            assert f"{mine[0].token_L[layer]}\ufffd␛[b]" in line and f" {mine[0].probability_L[layer]:.2f}" in line


# ---- of plans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["0.5B", "72B", "57B-A14B"])
@pytest.mark.parametrize("itemsize", [4, 2])
def test_memory_equals_closed_forms(size, itemsize):
    config = SIZES[size].config()
    one = memory(config, 32768).stored_in(itemsize)
    L, G, K = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    assert one.weights == itemsize * count_parameters(config)["total"]
    assert one.kv == itemsize * 2 * L * G * K * 32768
    assert one.logits == 4 * config.vocab_size
    T, D, H = 256, config.hidden_size, config.num_attention_heads
    if (
        not config.num_experts
    ):  # alive at down_proj: x before and after attention, its norm, the result; gate, up, product
        F, tables = config.intermediate_size, 4 * T * K
        assert one.activations == 4 * T * (4 * D + 3 * F) + tables
    scores = 2 * 4 * H * T * 32768  # scores and weights
    assert one.scores == pytest.approx(scores, rel=0.2)
    longest = longest_context(one, 32768, 10**12)
    rest = one.total - one.kv
    assert rest + one.kv * longest / 32768 <= 10**12 < rest + one.kv * (longest + 1) / 32768
    assert longest_context(one, 32768, one.weights) == 0


def test_memory_equals_a_real_allocation():
    """The plan's weights and cache are the bytes that arrays have; its activations bound what NumPy allocates."""
    config = dense_config(hidden_size=64, intermediate_size=160, head_dim=16, vocab_size=300)
    tensors = random_weights(config)
    cache = KVCache(BACKEND, config)
    cache.reserve(512)
    one = memory(config, 512)
    assert one.weights == sum(tensor.nbytes for tensor in tensors.values())
    assert one.kv == cache.nbytes
    weights = small_weights(config)
    step = lambda: make_step([(tokens(config, 256), cache)])  # noqa: E731
    forward(BACKEND, config, weights, step())
    tracemalloc.start()
    forward(BACKEND, config, weights, step())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one.activations + one.scores < peak < 1.6 * (one.activations + one.scores)


@WIDTHS
@pytest.mark.parametrize("size", SIZES)
def test_mem(size, width):
    config = SIZES[size].config()
    text = printed(width, print_memory, config)
    fits(text, width)
    H, G = config.num_attention_heads, config.num_key_value_heads
    assert f"{H / G:g} x less" in " ".join(text.split()) and "longest context in" in text
    assert ("128k*" in text) == (config.max_position_embeddings < 131072)


def test_wavelengths_are_those_of_the_formula():
    config = SIZES["7B"].config()
    K = config.head_dim
    expected_Kh = 2 * np.pi * config.rope_theta ** (2 * np.arange(K // 2) / K)
    np.testing.assert_allclose(wavelengths(config), expected_Kh, rtol=1e-9)


def test_wavelengths_and_the_view_of_a_stretched_model():
    plain = SIZES["7B"].config()
    ratio_Kh = wavelengths(plain.with_yarn(4)) / wavelengths(plain)
    np.testing.assert_allclose(ratio_Kh[[0, 23, 40, 63]], [1, 1, 4, 4], rtol=1e-9)
    text = printed(100, print_rope, plain.with_yarn(4))
    assert "theta 1e+06, YaRN 4, a context of 131072" in text
    assert "24 of 64 pairs turn less than once" in text, "as many as without YaRN in 32768 tokens"


@WIDTHS
def test_rope(width):
    config = SIZES["0.5B"].config()
    lines = fits(printed(width, print_rope, config), width)
    rows = [line for line in lines if line[:4].strip().isdecimal()]
    lengths = wavelengths(config)
    assert len(rows) == len(lengths)
    assert [" < " in row for row in rows] == (lengths > config.max_position_embeddings).tolist()
    assert [row.count("█") for row in rows] == sorted(row.count("█") for row in rows)
    marks = {row.index("|" if "|" in row else "┃") for row in rows}
    assert len(marks) == 1, "the context is marked in one column"
    assert "12 of 32 pairs turn less than once" in " ".join(lines)


# ---- explain ------------------------------------------------------------------------------------------------------


def traced(config):
    return record(BACKEND, config, small_weights(config), start(config)[0])


@WIDTHS
@pytest.mark.parametrize("name", ["dense", "window", "moe"])
def test_every_operation_can_be_explained(name, width):
    config = CONFIGS[name]
    steps = traced(config)
    one_of_each = {span.operation: span for span in reversed(steps[0].spans)}
    for operation, span in one_of_each.items():
        text = printed(width, print_explain, config, span.path, steps, MACHINE)
        fits(text, width)
        said = " ".join(text.split())
        assert " ".join(formula(operations()[operation]).split()) in said, "brackets in a formula are no markup"
        assert f"def {operation}(" in text and "bound" in text and "prefill 7, 7" in text
        if operation != "sample" and "experts." not in span.path:
            assert "at 256, 512" in text, span


def test_explained_costs_are_the_traces_own():
    config = dense_config()
    steps = traced(config)
    span = next(span for span in steps[-1].spans if span.path == "layers.1.mlp.gate_proj")
    lines = printed(100, print_explain, config, span.path, steps, MACHINE).splitlines()
    row = next(line for line in lines if line.startswith("decode "))
    assert (
        f"{si(span.cost.flops).strip()}" in row
        and f"{si(span.cost.read)}B" in row
        and f"{si(span.cost.written)}B" in row
    )
    total = printed(100, print_explain, config, "layers.1.self_attn", steps, MACHINE)
    inside = [one.cost for one in closed(steps[-1].spans) if one.path.startswith("layers.1.self_attn.")]
    assert si(sum(cost.flops for cost in inside)).strip() in next(
        line for line in total.splitlines() if line.startswith("decode ")
    )


def test_work_at_other_sizes_has_its_closed_forms():
    config = dense_config()
    H, K, D, F = config.num_attention_heads, config.head_dim, config.hidden_size, config.intermediate_size
    scores = at_sizes(config, "layers.0.self_attn.attention.scores", ["attention"])
    assert [(tokens, keys, cost.flops) for tokens, keys, cost in scores] == [
        (T, S, 2 * H * K * T * S) for T, S in EXPLAINED
    ]
    gate = at_sizes(config, "layers.2.mlp.gate_proj", [])
    assert [cost.flops for *_, cost in gate] == [2 * T * D * F for T, _ in EXPLAINED]


def test_a_plan_with_definitions_opened_meets_the_same_work():
    config = moe_config()
    weights = shape_weights(config)
    plain = on_shapes(config, weights, 3, 9).spans
    paths = {span.path for span in on_shapes(config, weights, 3, 9, opened=OPENED).spans}
    assert {span.path for span in plain} < paths
    assert {"layers.0.self_attn.attention.mix", "layers.1.mlp.gate.softmax", "layers.1.mlp.experts.0"} <= paths


def test_sources_are_where_they_say():
    for operation in operations().values():
        place, code = source(operation)
        file, line = place.split(":")
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(line) - 1] == "@operation" == code.splitlines()[0]
        assert '"""' not in code


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(
        folder, endless=True, model_type="qwen2_moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=13,
        shared_expert_intermediate_size=17, num_hidden_layers=4, decoder_sparse_step=2,
    )  # fmt: skip
    return folder


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
def test_the_command_shows_every_view(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["trace", "-m", str(folder), "-q", "--decode", "2", *arguments, "hello [bold]world"]) == 0
    out = capsys.readouterr().out
    assert words in out


@pytest.mark.parametrize("view", ["mem", "rope"])
def test_views_of_a_config_need_nothing_else(capsys, view):
    assert main(["trace", "--backend", "meta", "--size", "72B", "--view", view]) == 0
    assert main(["trace", "--size", "2.5-7B", "--view", view]) == 0
    assert capsys.readouterr().err == ""


def test_the_meta_backend_explains_what_is_inside_an_operation(capsys):
    path = "layers.3.self_attn.attention.scores"
    assert main(["trace", "--backend", "meta", "--size", "72B", "-q", "--explain", path]) == 0
    assert "GRTS 8x8x32x32 f32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--view", "attention", "--head", "6"], "heads 0 to 5"),
        (["--view", "attention", "--layer", "4"], "layers 0 to 3"),
        (["--view", "attention", "--layer", "all"], "name it"),
        (["--view", "route", "--layer", "2"], "the nearest are 1, 3"),
        (["--head", "1"], "--view attention"),
        (["--view", "lens", "--backend", "meta"], "shapes alone"),
        (["--view", "mem", "--jsonl", "x"], "--view mem"),
        (["--chrome", "x", "--backend", "meta"], "times"),
        (["--explain", "self_attn.scores"], "layers.0.self_attn.attention.scores"),
        (["--explain", "layers.9.mlp.gate_proj"], "layers.0.mlp.gate_proj"),
    ],
)
def test_wrong_usage_is_one_clear_line_with_near_choices(folder, capsys, arguments, words):
    code = main(["trace", "-m", str(folder), "-q", *arguments, "hi"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


def test_a_dense_model_has_nothing_to_route(tmp_path, capsys):
    write_tiny_checkpoint(tmp_path)
    assert main(["trace", "-m", str(tmp_path), "--view", "route", "hi"]) == 2
    assert "dense" in capsys.readouterr().err
