"""What a person sees of needles: a bar while they are asked for, then a map: a block per way, a row per depth, a column
per length, the greener the better."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from tinyqwen.cli.reading import prefill_work
from tinyqwen.config import Config
from tinyqwen.needle import Key

SHADES = ((178, 52, 47), (240, 200, 90), (46, 125, 80))  # found nothing, half, all
WIDTH = 8  # characters of a cell


def shade(part: float) -> tuple[int, int, int]:
    """The colour of a number from 0 to 1.

    >>> shade(0), shade(0.5), shade(1)
    ((178, 52, 47), (240, 200, 90), (46, 125, 80))
    """
    low, high = (SHADES[0], SHADES[1]) if part < 0.5 else (SHADES[1], SHADES[2])
    share = 2 * part - (part >= 0.5)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high))
    return red, green, blue


def figure(cell: dict[str, Any], show: str) -> tuple[str, float]:
    """What a cell says, and how good that is, from 0 to 1.

    >>> cell = {"accuracy": 0.5, "probability": 0.125, "rank": 4}
    >>> [figure(cell, show) for show in ("accuracy", "probability", "rank")]
    [('50 %', 0.5), ('0.12', 0.125), ('4', 0.25)]
    """
    value = cell[show]
    if show == "rank":
        return f"{value:g}", 1 / value
    return (f"{100 * value:.0f} %" if show == "accuracy" else f"{value:.2f}"), value


def size(tokens: int) -> str:
    """
    >>> size(4096), size(1000), size(131072)
    ('4k', '1000', '128k')
    """
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def print_map(console: Console, facts: dict[str, Any], show: str) -> None:
    """All ways one below the other; lengths that do not fit side by side go below, too."""
    many = max(1, (console.width - 6) // WIDTH)
    for way in facts["ways"]:
        cells = {(cell["length"], cell["depth"]): cell for cell in way["cells"]}
        console.print(Text(f"{way['way']}: {title(way)}", style="bold"))
        lengths = facts["lengths"]
        for first in range(0, len(lengths), many):
            print_block(console, lengths[first : first + many], facts["depths"], cells, way["context"], show)
        if lengths[-1] > way["context"]:
            console.print(f"* beyond its context of {way['context']:,} tokens", style="dim")
        console.print()


def print_block(console: Console, lengths, depths, cells, context: int, show: str) -> None:
    heads = [size(length) + ("*" if length > context else "") for length in lengths]
    console.print(Text("depth " + "".join(f"{head:^{WIDTH}}" for head in heads).rstrip(), style="dim"))
    for depth in depths:
        line = Text(f"{100 * depth:4.3g}% ")
        for length in lengths:
            if cell := cells.get((length, depth)):
                text, good = figure(cell, show)
                ink = "black" if 0.15 < good < 0.85 else "white"
                line.append(f"{text:^{WIDTH}}", style="{} on rgb({},{},{})".format(ink, *shade(good)))
            else:
                line.append(f"{'·':^{WIDTH}}", style="dim")
        console.print(line)


def title(way: dict[str, Any]) -> str:
    """One line about a way: found of asked, the interval of the rate, and how likely answers were."""
    if not way["asked"]:
        return "not measured"
    low, high = way["wilson"]
    return (
        f"{way['hits']} of {way['asked']} found (95 %: {100 * low:.0f} to {100 * high:.0f} %), "
        f"probability {way['probability']:.2f} a token"
    )


def picture_console(facts: dict[str, Any]) -> Console:
    """A console for a picture: as wide as all lengths need, with colours, and on no screen."""
    width = max(80, 6 + WIDTH * len(facts["lengths"]))
    return Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, color_system="truecolor", highlight=False,
        markup=False, no_color=False,
    )  # fmt: skip


@contextmanager
def progress(config: Config, ways: int, texts: list[list[Key]], *, quiet: bool):
    """Gives a function (way, place, tokens read; None: answered) that draws a bar, on a terminal.

    texts   of each, the seed, length and depth of its questions, in the order in which they are asked

    The time left follows from the work left, as in `tinyqwen.cli.reading`; what is not read again is work left out.
    """
    console = Console(stderr=True)
    words = "{task.fields[way]}, {task.fields[tokens]:,} tokens · {task.fields[done]} of {task.fields[all]} · "
    bar = Progress(
        TextColumn("asking"), BarColumn(), TextColumn(words + "{task.fields[left]} left"), console=console,
        transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    prices = {place: price(config, place, first=place == places[0]) for places in texts for place in places}
    whole, started = ways * sum(prices.values()), time.perf_counter()
    finished, count = 0.0, 0

    def asked(way: str, place: Key, read: int | None) -> None:
        nonlocal finished, count
        this = 0.0
        if read is None:
            finished, count = finished + prices[place], count + 1
        else:
            to_come = prefill_work(config, place[1]) - prefill_work(config, min(read, place[1]))
            this = max(0.0, prices[place] - to_come)
        done, elapsed = finished + this, time.perf_counter() - started
        left = timedelta(seconds=round(elapsed * (whole - done) / max(done, 1)))
        bar.update(task, completed=done, total=whole, way=way, tokens=place[1], done=count, left=left)

    with bar:
        task = bar.add_task("", total=whole, way="", tokens=0, done=0, left="", all=ways * sum(map(len, texts)))
        yield asked


def price(config: Config, place: Key, *, first: bool) -> float:
    """FLOPs of a question: a text's first one reads all of it, later ones what lies behind their needle."""
    _, length, depth = place
    known = 0 if first else round(depth * length)
    return prefill_work(config, length) - prefill_work(config, known)
