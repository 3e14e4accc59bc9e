"""How long a text may be: YaRN on request, a session's limit, and what memory refuses before anything is read."""

import re
from dataclasses import replace

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import dense_config
from tinyqwen import context
from tinyqwen.config import Quantization, RopeScaling
from tinyqwen.context import advice, check_context, check_memory, check_prompt, stretched
from tinyqwen.errors import DoesNotFitError, UsageError
from tinyqwen.plan import memory
from tinyqwen.runtime import load
from tinyqwen.sizes import SIZES

SMALL = SIZES["0.5B"].config()


def refusal(function, *arguments, error=UsageError, **settings) -> str:
    with pytest.raises(error) as found:
        function(*arguments, **settings)
    assert "\n" not in str(found.value)
    return str(found.value)


# ---- what the config says and what a person asks for --------------------------------------------------------------


def test_yarn_stretches_the_trained_context_and_nothing_else():
    assert stretched(SMALL, None) is SMALL
    asked = stretched(SMALL, 4.0)
    assert asked.context == 131072 and asked.rope_scaling == RopeScaling(4.0, 32768)
    assert stretched(asked, 2.0).context == 65536, "in place of what the config says, not on top of it"
    assert stretched(SMALL, 1).context == 32768


@pytest.mark.parametrize("factor", [0, 0.99, -4, 513, float("nan"), float("inf")])
def test_an_absurd_factor_is_refused(factor):
    assert "--yarn must be a number from 1 to 512" in refusal(stretched, SMALL, factor)


def test_a_session_is_as_long_as_the_model_at_most():
    check_context(SMALL, 32768)
    check_context(stretched(SMALL, 4), 131072)
    assert "stretch it with --yarn 2, to 65536" in refusal(check_context, SMALL, 32769)
    assert "at least 1" in refusal(check_context, SMALL, 0)


def test_a_prompt_that_is_too_long_learns_what_would_hold_it():
    check_prompt(SMALL, 100, 99)
    assert "raise --context" in refusal(check_prompt, SMALL, 100, 100)
    assert "--yarn 2," in refusal(check_prompt, SMALL, 32768, 32768), "an answer needs room, too"
    assert "expect less" in advice(SMALL, 200_000) and "expect less" not in advice(SMALL, 131072)
    assert "positions end" in advice(SMALL, 2**24 + 1)


# ---- what memory allows -------------------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch):
    """Set how many bytes there are."""
    return lambda size: monkeypatch.setattr(context, "available_bytes", lambda: size)


@pytest.mark.parametrize("format, kv", [("f32", "f32"), ("bf16", "bf16"), ("int4", "int8")])
def test_what_fits_to_the_byte_is_taken_and_a_byte_less_is_refused(room, format, kv):
    needed = memory(SMALL, 20_000, format, kv).total
    room(needed)
    check_memory(SMALL, 20_000, format=format, kv=kv)
    room(needed - 1)
    refusal(check_memory, SMALL, 20_000, format=format, kv=kv, error=DoesNotFitError)
    room(None)
    check_memory(SMALL, 20_000, format=format, kv=kv)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("size", [10**9, 2 * 10**9, 3 * 10**9])
def test_what_the_refusal_recommends_does_fit(room, size, kernels):
    long = stretched(SMALL, 8)
    room(size)
    text = refusal(check_memory, long, long.context, format="bf16", kv="bf16", kernels=kernels, error=DoesNotFitError)
    assert ("988 MB of weights in bf16" in text and "12288 bytes a token in bf16" in text) or not kernels
    if found := re.search(r"--context (\d+)", text):
        check_memory(long, int(found[1]), format="bf16", kv="bf16", kernels=kernels)
    if found := re.search(r"all of it with (.*)", text):
        flags = dict(re.findall(r"--(\S+) (\w+)", found[1]))
        formats = {"format": flags.get("dtype", "bf16"), "kv": flags.get("kv-dtype", "bf16")}
        check_memory(long, long.context, **formats, kernels=kernels)


def test_when_nothing_fits_it_says_so_and_a_quantised_folder_stays_as_it_is(room):
    room(10**6)
    text = refusal(check_memory, SMALL, 1000, format="bf16", kv="bf16", error=DoesNotFitError)
    assert "take a smaller model" in text
    room(600 * 10**6)
    whole = replace(SMALL, quantization_config=Quantization("int8"))
    assert "--dtype" not in refusal(check_memory, whole, 32768, format="int8", kv="bf16", error=DoesNotFitError)


# ---- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def test_a_loaded_model_is_stretched(folder):
    runtime = load(folder, yarn=4)
    assert runtime.context == 2048 and runtime.config.rope_scaling == RopeScaling(4, 512)
    assert load(folder, yarn=4, context=1000).context == 1000
    assert load(folder).config.rope_scaling is None and load(folder).context == 512


def test_what_cannot_fit_is_refused_before_a_weight_is_read(folder, room, monkeypatch):
    monkeypatch.setattr("tinyqwen.runtime.open_checkpoint", lambda *_, **__: pytest.fail("weights were read"))
    room(10**5)
    text = refusal(load, folder, yarn=4, error=DoesNotFitError)
    assert "a context of 2048 tokens" in text
    refusal(load, folder, context=512, error=DoesNotFitError)


def test_a_context_that_nobody_asked_for_need_not_fit(folder, room):
    room(10**5)
    assert load(folder).context == 512


def test_a_config_that_says_yarn_needs_no_flag(tmp_path):
    write_tiny_checkpoint(tmp_path, rope_scaling=RopeScaling(2.0, 512))
    assert load(tmp_path).context == 1024
    assert dense_config(rope_scaling=RopeScaling(2.5, 100)).context == 250
