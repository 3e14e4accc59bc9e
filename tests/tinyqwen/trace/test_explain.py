"""An operation explained: its own formula, source and costs."""

import pytest

from backends.tracing import closed
from tests.helpers import CONFIGS, dense_config, moe_config, small_weights
from tests.tinyqwen.trace.watching import BACKEND, MACHINE, WIDTHS, fits, printed, start
from tinyqwen.plan import OPENED, on_shapes, shape_weights
from tinyqwen.trace.explain import ROOT, at_sizes, formula, operations, print_explain, source
from tinyqwen.trace.explain import SIZES as EXPLAINED
from tinyqwen.trace.record import record
from tinyqwen.trace.table import si


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
        assert lines[int(line) - 1] == code.splitlines()[0] in ("@operation", "@Chain")
        assert '"""' not in code
