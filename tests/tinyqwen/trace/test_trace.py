"""The trace: steps apart, sums that equal closed forms, and a table that reads well at any width."""

import io

import pytest
from rich.console import Console

import backends
from backends import shape_only
from backends.tracing import closed
from tests.helpers import CONFIGS, small_weights
from tests.tinyqwen.trace.watching import MACHINE
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.machine import measure, seconds_per_span
from tinyqwen.sampling import Sampling
from tinyqwen.sizes import SIZES
from tinyqwen.trace.record import record, rows, split_layers
from tinyqwen.trace.table import LETTERS, fold, print_trace, si
from tinyqwen.weights import fill, tree


def start(backend, config, prompt=11, decode=4, **settings):
    return Running(
        list(range(1, prompt + 1)), KVCache(backend, config), Sampling(do_sample=True), 10**6,
        max_new_tokens=decode + 1, **settings,
    )  # fmt: skip


def traced(name="dense", **settings):
    config, backend = CONFIGS[name], backends.get("numpy")
    return record(backend, config, small_weights(config), start(backend, config, **settings), chunk=4)


def printed(steps, width, opened=0, times=True):
    console = Console(file=io.StringIO(), width=width)
    print_trace(console, steps, MACHINE, opened=opened, overhead=1e-6, times=times)
    return console.file.getvalue()


@pytest.mark.parametrize("name", CONFIGS)
def test_tracing_a_generation_changes_no_token(backend, name):
    config = CONFIGS[name]
    weights = small_weights(config, backend)
    plain, watched = start(backend, config, seed=3), start(backend, config, seed=3)
    for _ in generate(backend, config, weights, [plain]):
        pass
    record(backend, config, weights, watched)
    assert plain.ids == watched.ids


def test_steps_are_told_apart():
    steps = traced()
    assert [(step.phase, step.tokens, step.context) for step in steps] == [
        ("prefill", 4, 4), ("prefill", 4, 8), ("prefill", 3, 11),
        ("decode", 1, 12), ("decode", 1, 13), ("decode", 1, 14), ("decode", 1, 15),
    ]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_work_and_weights_of_a_decode_step_equal_the_closed_forms(size):
    """On shapes alone: FLOPs of the products are 2 per parameter used, and the weights read are the file's bytes."""
    from tinyqwen.weights import count_parameters, tensor_shapes

    config, backend = SIZES[size].config(), backends.get("meta")
    weights = tree(fill(config, lambda _, shape: shape_only(shape)))
    step = record(backend, config, weights, start(backend, config, decode=1))[-1]
    spans = closed(step.spans)
    counts, D, V = count_parameters(config), config.hidden_size, config.vocab_size
    vectors = sum(shape[0] for shape in tensor_shapes(config).values() if len(shape) == 1)
    matrices = counts["active"] - vectors - (0 if config.tie_word_embeddings else V * D)  # the input table is looked up
    of_experts = config.num_hidden_layers * config.num_experts_per_tok * (5 * config.moe_intermediate_size + 2 * D)
    products = {"linear", "route", "experts"}
    flops = sum(span.cost.flops for span in spans if span.operation in products)
    biases = config.num_hidden_layers * (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    router_softmax = 5 * config.num_experts * config.num_hidden_layers
    assert flops == 2 * matrices + biases + of_experts + router_softmax
    if not config.num_experts:
        read = sum(span.weights for span in spans if span.operation != "take_rows")
        assert read == 4 * (counts["total"] - (0 if config.tie_word_embeddings else V * D)), "the input table is not"


def test_what_is_inside_a_closed_operation_is_not_counted_twice():
    step = traced("moe")[-1]
    names = [span.operation for span in closed(step.spans)]
    assert "attention" in names and "scores" not in names
    assert names.count("experts") == 1 and "decoder_layer" not in names


def test_equal_layers_are_folded_and_others_are_not():
    _, layers, _ = split_layers(rows(traced("moe")[-3:]))
    shown = fold(layers, opened=2)
    assert [(layer.number, [other.number for other in folded]) for layer, folded in shown] == [(1, []), (2, [0, 3])]
    assert [layer.number for layer, _ in fold(layers, None)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_letters_of_every_result_are_true(name):
    """The table's letters against the sizes of a run in which all sizes differ."""
    config = CONFIGS[name]
    sizes = {**config.letters, "T": 1, "S": 15}
    for span in traced(name)[-1].spans:
        letters = LETTERS.get(span.operation, "")
        axes = [letter for letter in letters if letter.isupper()]
        if letters:
            assert len(axes) == len(span.shape), span
        for axis, size in zip(axes, span.shape):
            if axis in sizes and axis not in "FK":  # F also names an expert's width, K in TKh is half of it
                part = (axis == "T" and size >= 1) or (axis == "S" and name in ("window", "chunks") and size <= 15)
                assert sizes[axis] == size or part, (span.path, letters, span.shape)


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_fits_and_names_everything(name, width):
    text = printed(traced(name), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    for word in ("prefill", "decode", "embed_tokens", "layers.0", "q_proj", "attention", "lm_head", "total decode"):
        assert word in text, word
    if width >= 100:
        assert "…" not in text, "nothing is cut at 100 columns"


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", CONFIGS)
def test_with_less_room_names_are_cut_and_numbers_are_not(name, width):
    text = printed(traced(name), width)
    assert max(map(len, text.splitlines())) <= width
    cut = [line for line in text.splitlines() if "…" in line]
    assert len({line.index("…") for line in cut}) <= 2, "at the end of the first column, of prefill and of decode"
    assert all(line.count("…") == 1 for line in cut)
    assert text.count(" us ") + text.count(" ms ") > 20, "times are what a trace is for"


def test_the_totals_are_the_sums():
    steps = traced()
    flops = sum(span.cost.flops for span in closed(steps[-1].spans))
    last_line = printed(steps, 100).splitlines()[-2]
    assert last_line.startswith("total decode ") and f"{si(flops)}FLOP" in last_line


def test_this_machine_is_measured_and_watching_is_cheap():
    machine = measure(megabytes=16, size=128, rounds=1)
    assert 1e8 < machine.bytes_per_second < 1e13 and 1e8 < machine.flops_per_second < 1e15
    assert 0 <= seconds_per_span(50) < 1e-3
