"""Pictures for the HTML page, as inline SVG: a roofline, and weights as shades of one colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from backends.tracing import closed
from tinyqwen.machine import Machine
from tinyqwen.trace.table import si


def roofline(tables: dict, machine: Machine, times: bool) -> str:
    """Speed against arithmetic intensity, both logarithmic; the roof is what this machine was measured to do.

    Points on the roof are as fast as they can be; to the left of its corner memory is the limit, to the right
    arithmetic. Operations of less than 20 us are mostly the starting of work, and lie far below.
    """
    points = []
    for phase, table in tables.items():
        priced = {id(span) for span in closed([row.span for row in table])}
        for row in table:
            cost = row.span.cost
            if id(row.span) not in priced or cost is None or not cost.flops:
                continue
            seconds = row.seconds if times else machine.floor(cost)
            points.append(
                (phase, row.span.path, cost.flops / (cost.read + cost.written), cost.flops / (seconds or 1e-9))
            )
    if not points:
        return "<p>No operation with arithmetic was traced.</p>"
    ridge = machine.flops_per_second / machine.bytes_per_second
    xs, ys = [x for *_, x, _ in points] + [ridge], [y for *_, y in points] + [machine.flops_per_second]
    left, right = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs) * 2))
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    W, H, margin = 860, 420, 60
    at_x = lambda x: margin + (math.log10(x) - left) / (right - left) * (W - margin - 20)  # noqa: E731
    at_y = lambda y: H - 40 - (math.log10(y) - low) / max(1, high - low) * (H - 60)  # noqa: E731
    out = [f'<svg viewBox="0 0 {W} {H}" width="{W}" role=img aria-label="roofline" style="max-width:100%">']
    for power in range(left, right + 1):
        x = at_x(10.0**power)
        out.append(f'<line x1={x:.1f} x2={x:.1f} y1=20 y2={H - 40} stroke="#8884"/>')
        out.append(f"<text x={x:.1f} y={H - 22} text-anchor=middle fill=currentColor>{10.0**power:g}</text>")
    for power in range(low, high + 1):
        y = at_y(10.0**power)
        out.append(f'<line x1={margin} x2={W - 20} y1={y:.1f} y2={y:.1f} stroke="#8884"/>')
        out.append(f"<text x={margin - 6} y={y + 4:.1f} text-anchor=end fill=currentColor>{si(10.0**power)}</text>")
    start = max(10.0**left, 10.0**low / machine.bytes_per_second)
    roof = [(start, start * machine.bytes_per_second), (ridge, machine.flops_per_second)]
    roof.append((10.0**right, machine.flops_per_second))
    line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in roof)
    out.append(f'<polyline points="{line}" fill=none stroke=currentColor stroke-width=2 />')
    for phase, path, x, y in points:
        name = f"<title>{phase} {escape(path)}: {x:.3g} FLOP/byte, {si(y)}FLOP/s</title>"
        if phase == "prefill":
            out.append(f"<circle class=prefill cx={at_x(x):.1f} cy={at_y(y):.1f} r=4 fill-opacity=.55>{name}</circle>")
        else:
            out.append(
                f"<rect class=decode x={at_x(x) - 3.5:.1f} y={at_y(y) - 3.5:.1f} width=7 height=7 fill-opacity=.55>"
                f"{name}</rect>"
            )
    out.append(f"<text x={W - 20} y={H - 5} text-anchor=end fill=currentColor>FLOP per byte</text>")
    out.append(
        f"<text x={margin + 6} y=14 fill=currentColor>FLOP/s</text><circle class=prefill cx={W - 190} cy=12 r=5 />"
    )
    out.append(
        f"<text x={W - 180} y=16 fill=currentColor>prefill</text><rect class=decode x={W - 95} y=8 width=9 height=9 />"
    )
    out.append(f"<text x={W - 80} y=16 fill=currentColor>decode</text></svg>")
    return "\n".join(out)


def heat_map(weights_TS: np.ndarray, cell: int, names: Sequence[str] = (), title: str = "") -> str:
    """Weights as squares, the darker the heavier; one path for each of 20 shades keeps it small."""
    T, S = weights_TS.shape
    left = 110 if names else 0
    width, height = left + S * cell, T * cell
    out = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role=img>']
    if title:
        out.append(f"<title>{escape(title)}</title>")
    out.append(f'<rect x={left} y=0 width={S * cell} height={height} fill=none stroke="#8888"/>')
    shade_TS = np.ceil(np.clip(weights_TS, 0, 1) * 20 - 0.2).astype(int)  # less than 1 % is white
    for shade in range(1, 21):
        squares = (f"M{left + s * cell} {t * cell}h{cell}v{cell}h-{cell}z" for t, s in np.argwhere(shade_TS == shade))
        if path := "".join(squares):
            out.append(f'<path class=map fill-opacity={0.1 + 0.045 * shade:.2f} d="{path}"/>')
    for t, name in enumerate(names):
        out.append(f"<text x={left - 6} y={(t + 1) * cell - 3} text-anchor=end fill=currentColor>{escape(name)}</text>")
    return "\n".join([*out, "</svg>"])
