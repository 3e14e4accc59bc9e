"""Small runs to watch, and what is asked of everything that is printed of them."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

import backends
from tests.helpers import small_weights, tokens
from tinyqwen.generate import Running
from tinyqwen.kv_cache import KVCache
from tinyqwen.machine import Machine
from tinyqwen.sampling import Sampling
from tinyqwen.trace.capture import capture
from tinyqwen.trace.routing import routers

BACKEND = backends.get("numpy")
MACHINE = Machine("toy", 10e9, 100e9)
WIDTHS = pytest.mark.parametrize("width", [80, 100])
NASTY = "\u202e\x1b[b]你好[/b]\n\t"


def everything(path, operation):
    return operation in ("softmax", "softmax_part", "route", "decoder_layer") or routers(path, operation)


def start(config, prompts=((7, 0),), decode=4, backend=BACKEND):
    """Running sequences; each prompt is (length, seed)."""
    return [
        Running(
            tokens(config, length, seed), KVCache(backend, config), Sampling(do_sample=True), 10**6, seed=seed,
            max_new_tokens=decode + 1,
        )
        for length, seed in prompts
    ]  # fmt: skip


MANY = ((11, 0), (3, 1), (6, 2))


def captured(config, keep=everything, prompts=MANY, **settings):
    sequences = start(config, prompts)
    return sequences, capture(BACKEND, config, small_weights(config), sequences, keep, **settings)


# ---- what is printed ----------------------------------------------------------------------------------------------


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
