"""A curve of training: what the log of a run says, in the terminal and as a picture.

A step's loss is that of the tokens which the step happened to read, and jumps about. So a curve is drawn through means
of neighbouring steps, as many as there are places; in the picture the steps themselves lie behind it, pale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyqwen.errors import UsageError

LOG = "log.jsonl"


class Curve(NamedTuple):
    """A figure of a run, step by step."""

    name: str
    step_N: np.ndarray
    value_N: np.ndarray


def read_curve(path: Path | str, figure: str = "loss") -> Curve:
    """A figure of a run's log. path: the run's folder, or the log itself; a last line that is cut off is left out.

    Errors: UsageError for what is no log, and for a figure that it does not have.
    """
    path = Path(path)
    log = path / LOG if path.is_dir() else path
    try:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        steps = [int(row["step"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or "not JSON with a step in each line"
        raise UsageError(f"{log}: cannot be read as the log of a run ({why})") from None
    if not rows:
        raise UsageError(f"{log}: has no steps yet")
    pairs = [(step, row[figure]) for step, row in zip(steps, rows) if isinstance(row.get(figure), (int, float))]
    if not pairs:
        raise UsageError(f"{log}: has no {figure}; there are {', '.join(name for name in rows[0] if name != 'step')}")
    step_N, value_N = (np.array(column) for column in zip(*pairs))
    return Curve((path if path.is_dir() else path.parent).resolve().name, step_N, value_N.astype(float))


def means(curve: Curve, places: int, last: int | None = None) -> np.ndarray:
    """Means of the steps of each of so many equal stretches from step 1 to `last`; NaN where there are none.

    >>> means(Curve("", np.array([1, 2, 3, 4]), np.array([8.0, 6, 4, 4])), places=2, last=6)
    array([6., 4.])
    """
    last = last or int(curve.step_N[-1])
    place_N = np.minimum((curve.step_N - 1) * places // last, places - 1)
    counts = np.bincount(place_N, minlength=places)
    with np.errstate(invalid="ignore"):
        return np.bincount(place_N, curve.value_N, minlength=places) / np.where(counts, counts, np.nan)


def span_of(curves: Sequence[Curve], places: int) -> tuple[float, float]:
    """The least and the largest mean of all curves; a little apart where they are one."""
    found = np.concatenate([means(curve, places) for curve in curves])
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0) / 10)


# ---- in the terminal ----------------------------------------------------------------------------------------------

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille character: two columns, four rows


def chart(
    curve: Curve, *, width: int = 60, height: int = 8, last: int | None = None, span: tuple[float, float] | None = None
) -> str:
    """The curve in Braille dots, two by four to a character, with its span at the left and the last step below.

    last   the step at the right edge (default: the curve's last)

    >>> print(chart(Curve("", np.arange(1, 41), 4.0 - np.arange(40) / 20), width=10, height=2))
    3.98 ⠉⠒⠢⢄⣀⠀⠀⠀⠀⠀
    2.08 ⠀⠀⠀⠀⠀⠉⠑⠢⠤⣀
         1       40
    """
    last = last or int(curve.step_N[-1])
    mean_N = means(curve, 2 * width, last)
    low, high = span or span_of([Curve("", np.arange(1, 2 * width + 1), mean_N)], 2 * width)
    rows = 4 * height - 1
    cells = np.zeros((height, width), int)
    before = None
    for column, mean in enumerate(mean_N):
        if not math.isfinite(mean):
            continue
        row = round(rows * (high - min(max(mean, low), high)) / (high - low))
        between = range(row, row + 1) if before is None else range(min(row, before + 1), max(row, before - 1) + 1)
        for dot in between:  # a line without gaps
            cells[dot // 4, column // 2] |= DOTS[column % 2][dot % 4]
        before = row
    names = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"] if height > 1 else [f"{high:.3g}"]
    wide = max(map(len, names))
    lines = [f"{name:>{wide}} {''.join(chr(0x2800 + cell) for cell in row)}" for name, row in zip(names, cells)]
    return "\n".join([*lines, f"{'':{wide}} 1{last:>{width - 1},}"])


# ---- as a picture -------------------------------------------------------------------------------------------------

COLOURS = ("#3b78c4", "#c8553d", "#4c8c4a", "#8a5fa8", "#b8860b", "#5f6b73")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 56, 36, 16, 44
PLACES = 200  # means along the picture's width


def svg(curves: Sequence[Curve], *, figure: str = "loss", title: str = "") -> str:
    """The curves of one or more runs in one picture.

    >>> picture = svg([Curve("a < b", np.array([1, 2, 3]), np.array([3.0, 2, 1]))], title="Loss")
    >>> picture.count("<path"), "a &lt; b" in picture
    (2, True)
    """
    last = max(int(curve.step_N[-1]) for curve in curves)
    places = min(PLACES, last)
    low, high = span_of(curves, places)
    x_of = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(last - 1, 1)  # noqa: E731
    y_of = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for value in ticks(low, high):
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    for step in ticks(1, last):
        parts.append(f'<text x="{x_of(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{int(step):,}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(figure)}</text>')
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        middle_N = (np.arange(places) + 0.5) * last / places + 0.5
        seen_N = np.clip(curve.value_N, low, high)
        parts += [
            f'<path d="{path(x_of, y_of, curve.step_N, seen_N)}" fill="none" stroke="{colour}" stroke-opacity="0.25"/>',
            f'<path d="{path(x_of, y_of, middle_N, means(curve, places, last))}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 16 * (number + 1)}" text-anchor="end" fill="{colour}">'
            f"{escape(curve.name)}</text>",
        ]
    return "\n".join([*parts, "</svg>\n"])


def path(x_of, y_of, step_N, value_N) -> str:
    """The line through these points; those that are no numbers are left out."""
    points = [(x_of(step), y_of(value)) for step, value in zip(step_N, value_N) if math.isfinite(value)]
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many round numbers in that span.

    >>> ticks(0.13, 2.71), ticks(1, 400)
    ([0.5, 1.0, 1.5, 2.0, 2.5], [100.0, 200.0, 300.0, 400.0])
    """
    rough = max(high - low, 1e-12) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, past = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, past + 1)]
