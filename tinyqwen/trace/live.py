"""Watching live: the text as it comes, where the time goes, and how full the cache is, in one frame on the terminal.

The frame is drawn at most eight times a second, between steps, so it costs the model nothing while it works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from backends.tracing import closed
from tinyqwen.generate import Event
from tinyqwen.tokenizer import TextStream, Tokenizer, harmless
from tinyqwen.trace.record import Recorder, TracedStep
from tinyqwen.trace.table import duration

SECONDS = 1 / 8
LEVELS = "▁▂▃▄▅▆▇█"
PARTS = {"attention": "self_attn", "feed-forward": "mlp", "head": "lm_head"}


def watch(console: Console, events: Iterable[Event], recorder: Recorder, tokenizer: Tokenizer) -> str:
    """Run the generation to its end under the frame; returns the text. Without a terminal only the end is printed."""
    stream, text, drawn = TextStream(tokenizer), "", 0.0
    with Live(console=console, auto_refresh=False) as live:
        for _, token in events:
            if token is not None:
                text += stream.push(token)
            if console.is_terminal and time.perf_counter() - drawn > SECONDS:
                live.update(frame(text, recorder, console.width), refresh=True)
                drawn = time.perf_counter()
        text += stream.finish()
        live.update(frame(text, recorder, console.width), refresh=True)
    return text


def frame(text: str, recorder: Recorder, width: int) -> Group:
    """The three panes: text, time, cache."""
    running, steps = recorder.running, recorder.steps()
    return Group(
        Panel(Text(harmless(text[-6 * width :]) or "..."), title="text", title_align="left"),
        Panel(where_time_goes(steps, width - 4), title="time", title_align="left"),
        Panel(meters(steps, running.cache.length, running.context, width - 4), title="cache", title_align="left"),
    )


def where_time_goes(steps: list[TracedStep], width: int) -> Text:
    """The newest step: one column per layer, and the shares of its parts."""
    if not steps:
        return Text("...")
    step = steps[-1]
    layers = [span.seconds for span in step.spans if span.operation == "decoder_layer"]
    lines = [
        f"{step.phase}: {step.tokens} tokens in {duration(step.seconds)}",
        f"layers {sparkline(layers[: width - 30])} {duration(min(layers))} to {duration(max(layers))}",
    ]
    for name, seconds in shares(step).items():
        share = seconds / step.seconds
        lines.append(f"{name:<12} {'█' * round(share * (width - 24)):<{max(width - 24, 1)}} {100 * share:3.0f} %")
    return Text("\n".join(lines))


def shares(step: TracedStep) -> dict[str, float]:
    """Seconds of a step by part of the model; what is in none of them is the rest."""
    found = dict.fromkeys([*PARTS, "rest"], 0.0)
    for span in closed(step.spans):
        places = span.path.split(".")
        part = next((name for name, place in PARTS.items() if place in places), "rest")
        found[part] += span.seconds
    return found


def meters(steps: list[TracedStep], used: int, context: int, width: int) -> Text:
    """How full the cache is, and how fast the last tokens came."""
    bar = max(10, width - 40)
    filled = round(bar * used / context)
    decode = [step.seconds for step in steps if step.phase == "decode"]
    speed = f"{1 / statistics.median(decode):.1f} tokens/s {sparkline(decode[-24:])}" if decode else ""
    return Text(f"{'█' * filled}{'░' * (bar - filled)} {used:,} of {context:,} tokens\n{speed}")


def sparkline(values: list[float]) -> str:
    """One column per value, from the smallest to the largest.

    >>> sparkline([1, 2, 3, 8])
    '▁▂▃█'
    """
    low, high = min(values, default=0), max(values, default=0)
    span = (high - low) or 1
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in values)
