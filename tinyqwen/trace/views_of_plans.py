"""Views that need no run, only a config: where the memory goes, and what RoPE can tell apart."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from tinyqwen.config import Config
from tinyqwen.plan import BYTES, ROOMS, Memory, longest_context, memory, wavelengths
from tinyqwen.trace.views import say

CONTEXTS = (1024, 4096, 8192, 32768, 131072)


def gigabytes(size: float) -> str:
    """Three digits, always in GB (10^9), so that a column can be compared by eye.

    >>> [gigabytes(x) for x in (1976131072, 50331648, 600000, 290e9)]
    ['1.98', '0.050', '0.001', '290']
    """
    return f"{size / 1e9:.{3 if size < 1e9 else 2 if size < 1e10 else 1 if size < 1e11 else 0}f}"


def print_memory(console: Console, config: Config) -> None:
    """Memory against context length, in f32 and bf16; what grouped queries save; which context fits where."""
    planned = [memory(config, context) for context in CONTEXTS]
    for name, itemsize in BYTES.items():
        say(console, f"memory of one sequence, weights and KV cache in {name} (GB = 10^9 bytes)", "bold")
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("context", "weights", "KV", "activ.", "logits", "total", "+ scores"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("W weights, K cache, . rest", no_wrap=True)
        found = [one.stored_in(itemsize) for one in planned]
        room = console.width - 62
        for context, one in zip(CONTEXTS, found):
            mark = "" if context <= config.context else "*"
            numbers = (one.weights, one.kv, one.activations, one.logits, one.total, one.scores)
            table.add_row(f"{context // 1024}k{mark}", *map(gigabytes, numbers), stacked(one, found[-1].total, room))
        console.print(table, highlight=False)
    H, G = config.num_attention_heads, config.num_key_value_heads
    kilobytes = config.kv_values_per_token * 4 / 1024
    say(
        console,
        "activations and logits stay float32, for a prompt read 256 tokens at a time; + scores: what attention takes "
        "more where its scores are stored (NumPy), which fast kernels do not. "
        f"* more than the {config.context} tokens that the config allows.",
        "dim",
    )
    say(
        console,
        f"\nGrouped queries: {H} heads share {G} KV heads, so a token takes {kilobytes:.0f} KiB of cache in f32 "
        f"and not {kilobytes * H / G:.0f}: {H / G:g} x less.\n",
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("longest context in", no_wrap=True)
    for gigabyte in ROOMS:
        table.add_column(f"{gigabyte} GB", justify="right", no_wrap=True)
    for name, itemsize in BYTES.items():
        one = planned[0].stored_in(itemsize)
        fits = [longest_context(one, CONTEXTS[0], gigabyte * 10**9) for gigabyte in ROOMS]
        table.add_row(name, *(f"{tokens}{'*' if tokens > config.context else ''}" for tokens in fits))
    console.print(table, highlight=False)
    say(console, "tokens of one sequence; 0: the weights alone do not fit", "dim")


def stacked(one: Memory, largest: int, width: int) -> str:
    """A bar of letters, as long as the total is beside the largest one.

    >>> stacked(Memory(50, 25, 20, 5, 0), largest=200, width=20)
    'WWWWWKKK..'
    """
    ends = [round(width * part / largest) for part in (one.weights, one.weights + one.kv, one.total)]
    return "W" * ends[0] + "K" * (ends[1] - ends[0]) + "." * (ends[2] - ends[1])


def print_rope(console: Console, config: Config, context: int | None = None) -> None:
    """Each pair's wavelength on a logarithmic scale, against the context (default: the longest that is allowed).

    A pair that turns less than once within the context gives every position an angle of its own, as a clock's hour
    hand does; the fast ones repeat, and tell neighbours apart.
    """
    context = context or config.context
    length_Kh = wavelengths(config)
    longest = max(float(length_Kh[-1]), context)
    width = console.width - 31
    column = lambda length: round(width * math.log(length / 6) / math.log(longest / 6))  # noqa: E731
    yarn = f", YaRN {config.rope_scaling.factor:g}" if config.rope_scaling else ""
    say(
        console,
        f"RoPE: {len(length_Kh)} pairs of channels, theta {config.rope_theta:g}{yarn}, a context of {context}",
        "bold",
    )
    say(console, f"{'pair':>4} {'wavelength':>11} {'turns':>10}   bars: log scale; | marks the context", "dim")
    for pair, length in enumerate(length_Kh.tolist()):
        turns, end, mark = context / length, column(length), column(context)
        bar = ["█"] * end + [" "] * (width - end + 1)
        bar[mark] = "|" if end <= mark else "┃"
        once = "<" if turns < 1 else " "
        say(console, f"{pair:>4} {length:>11,.1f} {turns:>10.3g} {once} {''.join(bar).rstrip()}")
    slow = int((length_Kh > context).sum())
    say(
        console, f"< {slow} of {len(length_Kh)} pairs turn less than once within the context; wavelengths are in tokens"
    )
