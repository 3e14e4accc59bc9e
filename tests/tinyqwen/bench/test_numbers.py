"""Statistics, ceilings and the rules of the table: pure functions, held by what must be true of any input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqwen.bench.figures import figures
from tinyqwen.bench.limits import KV_BYTES, Limits, Work, work
from tinyqwen.bench.numbers import Spread, short, within_rounds
from tinyqwen.bench.report import table
from tinyqwen.bench.rounds import Question, Results, moved_on
from tinyqwen.bench.team import Entry, groups
from tinyqwen.formats import FORMATS, weight_bytes
from tinyqwen.sizes import SIZES

SPEEDS = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9)
SMALL, LARGE = SIZES["0.5B"].config(), SIZES["1.5B"].config()


@given(SPEEDS)
def test_a_median_lies_within_its_spread_and_order_does_not_matter(values):
    spread = Spread.of(values)
    assert spread.low <= spread.median <= spread.high
    assert {spread.low, spread.high} <= set(values)
    assert spread == Spread.of(values[::-1])
    assert sum(value <= spread.median for value in values) * 2 >= len(values)


def test_nothing_measured_has_no_median():
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


@given(st.floats(1e-6, 1e9))
def test_a_short_number_is_right_to_half_a_percent_and_has_no_exponent(value):
    text = short(value)
    assert "e" not in text or value < 1e-4
    assert abs(float(text.replace(",", "")) - value) <= max(0.5, 0.0051 * value) if value >= 100 else 0.0051 * value


@given(SPEEDS, st.floats(0.5, 2))
def test_a_slow_round_that_hits_both_cancels_out(speeds, ratio):
    doubled = within_rounds([ratio * speed for speed in speeds], speeds)
    assert doubled == pytest.approx([ratio] * len(speeds))


# ---- ceilings ----


@pytest.mark.parametrize("dtype", FORMATS)
def test_decoding_reads_every_matrix_once(dtype):
    one = work(SMALL, dtype, "f32", 1)
    assert one.tokens == 1
    assert one.weights == pytest.approx(weight_bytes(SMALL, dtype), rel=0.01)


@pytest.mark.parametrize("kv", KV_BYTES)
def test_a_deeper_cache_costs_its_bytes_and_no_more(kv):
    shallow, deep = (work(SMALL, "bf16", kv, 1, depth) for depth in (0, 8192))
    assert deep.kv - shallow.kv == 8192 * KV_BYTES[kv] * SMALL.kv_values_per_token
    assert deep.weights == shallow.weights and deep.flops > shallow.flops


def test_sequences_together_share_the_weights_but_not_the_caches():
    alone, together = (work(SMALL, "bf16", "bf16", 1, 100, sequences) for sequences in (1, 16))
    assert together.tokens == 16 * alone.tokens and together.kv == 16 * alone.kv
    assert alone.weights <= together.weights < 1.01 * alone.weights  # some more rows of the embedding


def test_a_prompt_is_bound_by_arithmetic_and_a_token_by_memory():
    limits = Limits(50e9, dict.fromkeys(FORMATS, 1e12))
    prompt, token = work(SMALL, "bf16", "bf16", 512), work(SMALL, "bf16", "bf16", 1)
    assert prompt.seconds(limits, "bf16") == prompt.flops / 1e12
    assert token.seconds(limits, "bf16") == (token.weights + token.kv) / 50e9
    assert prompt.flops == pytest.approx(2 * 512 * 357.9e6 + 2 * 136.1e6, rel=0.05)  # the head once, the body 512 times


@given(st.floats(1e9, 1e12), st.floats(1e9, 1e13), st.floats(1.1, 10))
def test_a_better_machine_is_never_slower(read, peak, better):
    for one in (Work(1, 10**9, 1e6, 10**9), Work(512, 10**9, 1e6, 10**12)):
        slow = one.seconds(Limits(read, {"f32": peak}), "f32")
        assert one.seconds(Limits(read * better, {"f32": peak}), "f32") <= slow
        assert one.seconds(Limits(read, {"f32": peak * better}), "f32") <= slow
        assert one.seconds(Limits(read * better, {"f32": peak * better}), "f32") == pytest.approx(slow / better)


# ---- the rules of the table ----

DECODE, DEEP, MANY, PROMPT = (
    Question("decode", 32), Question("decode", 32, 8192), Question("decode", 32, 0, 16), Question("prefill", 512),
)  # fmt: skip


def judged(speeds, dtype="bf16", **more):
    """The figures of these speeds: {(name, question): tokens per second}, the same in three rounds."""
    results = Results(rounds={(Entry(name, more.get(name, dtype)), question): [speed] * 3
                              for (name, question), speed in speeds.items()})  # fmt: skip
    results.weight_bytes = results.token_bytes = {Entry("tinyqwen", dtype): 10**9}
    results.peak_bytes = {Entry("tinyqwen", dtype): 10**9 + 50 * 10**6 + 310 * 10**6}
    results.reads = {asked: [50e9] * 3 for asked in results.rounds}
    results.shallow = {(entry, DEEP): results.rounds.get((entry, DECODE)) for entry, _ in results.rounds}
    works = {(dtype, DECODE): Work(1, 10**9, 0, 1), (dtype, DEEP): Work(1, 10**9, 10**9, 1)}
    return {figure.what: figure for figure in figures(results, works, {dtype: 50e6})}


def test_decoding_is_compared_with_the_faster_of_two_peers_at_equal_bits():
    found = judged({("tinyqwen", DECODE): 48, ("llama.cpp", DECODE): 40, ("openvino", DECODE): 20,
                    ("transformers", DECODE): 99})  # fmt: skip
    figure = found["decode over llama.cpp bf16"]
    assert (figure.value.median, figure.bar, figure.met) == (1.2, 1.2, True)
    assert not judged({("tinyqwen", DECODE): 47, ("llama.cpp", DECODE): 40})["decode over llama.cpp bf16"].met
    other_bits = judged({("tinyqwen", DECODE): 48, ("llama.cpp", DECODE): 40}, **{"llama.cpp": "int8"})
    assert not [what for what in other_bits if "over llama.cpp" in what]


def test_weight_bytes_are_compared_with_the_bandwidth_of_the_same_moment():
    figure = judged({("tinyqwen", DECODE): 45})["decode, weight bytes/s of the read bandwidth"]
    assert figure.value.median == pytest.approx(0.9) and figure.met


def test_prompts_are_compared_with_the_best_format_of_each():
    found = judged({("tinyqwen", DECODE): 1, ("tinyqwen", PROMPT): 1200, ("transformers", PROMPT): 1000,
                    ("llama.cpp", PROMPT): 900, ("openvino", PROMPT): 1300},
                   transformers="f32", openvino="int8")  # fmt: skip
    assert found["prefill 512, tinyqwen bf16 over transformers f32"].value.median == 1.2
    assert not found["prefill 512, tinyqwen bf16 over transformers f32"].met
    assert not found["prefill 512, tinyqwen bf16 over openvino int8"].met


@pytest.mark.parametrize("speed, met", [(1 / (1 / 40 + 0.02), True), (1 / (1 / 40 + 0.02) / 1.2, False)])
def test_depth_may_cost_what_its_bytes_explain(speed, met):
    """A billion bytes of cache at 50 GB/s explain 20 ms."""
    [figure] = [
        f for what, f in judged({("tinyqwen", DECODE): 40, ("tinyqwen", DEEP): speed}).items() if "8192" in what
    ]
    assert figure.met is met


def test_many_sequences_memory_and_what_was_not_measured():
    found = judged({("tinyqwen", DECODE): 40, ("tinyqwen", MANY): 200})
    assert found["decode 16 together over one alone"].value.median == 5
    memory = found["peak memory beyond weights and cache, MB"]
    assert memory.value.median == pytest.approx(310) and not memory.met
    assert judged({("llama.cpp", DECODE): 40}) == {}


# ---- who runs together, and in which order ----


@given(st.dictionaries(st.sampled_from(FORMATS), st.floats(0.1, 30)), st.floats(1, 40))
def test_groups_hold_every_format_once_in_order_and_fit(sizes, room):
    found = groups(sizes, room)
    assert [dtype for group in found for dtype in group] == list(sizes)
    assert all(len(group) == 1 or sum(sizes[dtype] for dtype in group) <= room for group in found)


def test_everybody_is_first_once():
    assert {moved_on(list("abc"), number)[0] for number in range(3)} == set("abc")
    assert moved_on([], 1) == []


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\n\r\\"), max_size=5), min_size=2, max_size=2)))
def test_a_table_has_as_many_columns_in_every_line(body):
    for line in table(("a", "b"), body).split("\n"):
        assert line.replace("\\|", "").count("|") == 3
