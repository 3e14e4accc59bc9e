"""The bar while a prompt is read: what it says, when it is silent, and that it does not promise minutes for an hour."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import backends
from tests.helpers import dense_config
from tinyqwen.cli import reading
from tinyqwen.cli.reading import Reading, prefill_work
from tinyqwen.formats import shape_weights
from tinyqwen.generate import Running
from tinyqwen.kv_cache import KVCache
from tinyqwen.plan import work
from tinyqwen.sampling import Sampling
from tinyqwen.sizes import SIZES

CONFIG = SIZES["0.5B"].config()


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reading, "time", clock)
    return clock


def sequence(tokens, kept=0):
    cache = KVCache(backends.get("numpy"), dense_config())
    cache.length = kept
    return Running([0] * tokens, cache, Sampling(), context=2**20)


def watched(terminal=True, quiet=False, **settings):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, **settings)
    return console.file, lambda sequences: Reading(CONFIG, sequences, quiet=quiet, console=console)


@pytest.mark.parametrize("size", ["0.5B", "7B", "57B-A14B"])
@pytest.mark.parametrize("tokens", [1000, 32768])
def test_the_work_is_that_of_the_model(size, tokens):
    config = SIZES[size].config()
    assert prefill_work(config, tokens) == pytest.approx(
        work(config, shape_weights(config), tokens, tokens).flops, rel=0.03
    )


def test_it_says_how_far_how_fast_and_how_long(clock):
    out, make = watched()
    one = sequence(20_000)
    with make([one]) as bar:
        clock.now, one.cache.length = 10.0, 5000
        bar.update()
        text = out.getvalue()
    assert "5,000 of 20,000 tokens · 500 tokens/s" in text
    left = 10 * (prefill_work(CONFIG, 20_000) / prefill_work(CONFIG, 5000) - 1)
    assert left > 45, "not three times as long as a quarter has taken"
    minutes, seconds = map(int, re.search(r"0:(\d\d):(\d\d) left", text).groups())
    assert abs(60 * minutes + seconds - left) <= 1
    assert out.getvalue().endswith("\x1b[2K"), "the line is wiped when all is read"


@given(st.integers(2, 131072), st.floats(0.01, 0.99), st.integers(0, 1000), st.floats(1e9, 1e13))
def test_the_time_left_is_exact_when_work_takes_time(tokens, part, kept, speed):
    one, other = sequence(tokens + kept, kept), sequence(50)
    _, make = watched()
    bar = make([one, other])
    one.cache.length = kept + int(part * tokens) + 1
    seconds = lambda n: prefill_work(CONFIG, n) / speed  # noqa: E731
    spent = seconds(one.cache.length) - seconds(kept)
    bar.started = 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "time", clock := Clock())
        clock.now = 100.0 + spent
        elapsed, read, left = bar.times()
    assert read == one.cache.length - kept
    assert elapsed == pytest.approx(spent, rel=1e-6)
    assert left == pytest.approx(seconds(tokens + kept) + seconds(50) - seconds(one.cache.length), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{"terminal": False}, {"quiet": True}, {"terminal": False, "force_interactive": False}]
)
def test_nobody_looks_or_nobody_asked(clock, settings):
    out, make = watched(**settings)
    one = sequence(20_000)
    with make([one]) as bar:
        clock.now, one.cache.length = 10.0, 5000
        bar.update()
        bar.clear()
    assert out.getvalue() == ""


def test_a_short_prompt_is_read_in_silence(clock):
    out, make = watched()
    one = sequence(1000)
    with make([one]) as bar:
        clock.now, one.cache.length = 0.5, 512
        bar.update()
    assert out.getvalue() == ""


def test_an_error_leaves_no_bar_and_a_visible_cursor(clock):
    out, make = watched()
    one = sequence(20_000)
    with pytest.raises(ZeroDivisionError), make([one]) as bar:
        clock.now, one.cache.length = 10.0, 5000
        bar.update()
        raise ZeroDivisionError
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
