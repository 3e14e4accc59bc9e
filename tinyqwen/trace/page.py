"""The trace as one HTML page that needs nothing else: no network, no fonts, no scripts but its own twenty lines.

Everything can be read with scripts switched off; they only sort, filter and unfold. A content security policy allows
that one script by its hash and nothing from elsewhere, and all text is escaped: a prompt is shown, never run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from backends.tracing import closed
from tinyqwen.config import Config
from tinyqwen.machine import Machine
from tinyqwen.trace.attention_maps import AttentionMap, joined
from tinyqwen.trace.pictures import heat_map, roofline
from tinyqwen.trace.record import Row, TracedStep, rows, split_layers
from tinyqwen.trace.routing import Routing
from tinyqwen.trace.table import duration, result, si
from tinyqwen.trace.views import ROWS, Spell, label

PHASES = ("prefill", "decode")

STYLE = """\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
code, pre, td, th, svg text { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
pre { overflow-x: auto; } .wide { overflow-x: auto; } .dim, dt { opacity: .7; }
table { border-collapse: collapse; } td, th { padding: .1rem .7rem .1rem 0; text-align: left; white-space: pre; }
th { border-bottom: 1px solid; } td.n, th.n { text-align: right; }
th button { font: inherit; background: none; border: 0; padding: 0; cursor: pointer; color: inherit; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tr:hover td { background: #8882; }
td.bar { min-width: 5.5rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(34rem, 1fr)); gap: 0 2rem; }
td.bar { background: linear-gradient(#0072b255 0 0) 0 / var(--w) 100% no-repeat; }
summary { cursor: pointer; padding: .15rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
figure { display: inline-block; margin: 0 1.2rem 1rem 0; vertical-align: top; } .script { display: none; }
/* blue circles and orange squares: told apart by every eye, and on paper by their form */
.prefill { fill: #0072b2; } .decode { fill: #d55e00; } .map { fill: #0072b2; }
"""

SCRIPT = """\
"use strict";
const root = document.documentElement, table = document.getElementById("operations"), body = table.tBodies[0];
const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
function sort(column, down) {
  const number = table.tHead.rows[0].cells[column].classList.contains("n"), sign = down ? -1 : 1;
  const order = (a, b) => number ? (a === "" ? -1 : +a) - (b === "" ? -1 : +b) : a < b ? -1 : a > b ? 1 : 0;
  body.append(...[...body.rows].sort((a, b) => sign * order(value(a, column), value(b, column))));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
}
const fold = open => { for (const one of document.querySelectorAll("details")) one.open = open; };
for (const head of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  button.onclick = () => sort(head.cellIndex, head.getAttribute("aria-sort") !== "descending");
  head.replaceChildren(button);
}
const filter = document.getElementById("filter");
filter.oninput = () => { for (const row of body.rows) row.hidden = !row.textContent.includes(filter.value); };
document.getElementById("open").onclick = () => fold(true);
document.getElementById("close").onclick = () => fold(false);
for (const one of document.querySelectorAll(".script")) one.style.display = "inline-block";
function follow() {  // #sort=time, #open, and #prefill.layers.3 can be linked to
  const to = decodeURIComponent(location.hash.slice(1)), heads = [...table.tHead.rows[0].cells];
  if (to.startsWith("sort=")) {
    const column = heads.findIndex(head => head.textContent === to.slice(5));
    if (column >= 0) sort(column, true);
  } else if (to === "open") fold(true);
  else if (document.getElementById(to)?.tagName === "DETAILS") document.getElementById(to).open = true;
}
addEventListener("hashchange", follow);
follow();
root.dataset.ready = "yes";
"""


def page(
    *,
    title: str,
    command: str,
    prompt: str | None,
    config: Config,
    machine: Machine,
    steps: Sequence[TracedStep],
    times: bool = True,
    maps: Sequence[AttentionMap] = (),
    layer: int = 0,
    head: int = 0,
    routes: Sequence[Routing] = (),
    ids: Sequence[int] = (),
    spell: Spell = str,
) -> str:
    """The whole page.

    times    False for a run on shapes alone: least times stand in for measured ones
    maps     attention of `layer`, `head` drawn large; of the one sequence whose ids are `ids`
    routes   the routers' decisions

    Size: about 0.3 KB for each operation of a prefill and of a decode step (0.5B: 0.6 MB).
    """
    groups = {phase: [step for step in steps if step.phase == phase] for phase in PHASES}
    tables = {phase: rows(some) for phase, some in groups.items() if some}
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = [
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name=viewport content="width=device-width">',
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        facts(command, prompt, config, machine),
        "<h2>Prefill and decode</h2>",
        totals(groups, machine, times),
        "<h2>Roofline</h2>",
        roofline(tables, machine, times),
        "<h2>Layers</h2>",
        '<p class=script><button id=open>unfold all</button> <button id=close>fold all</button></p>',
        "<div class=two>",
        *(layers(phase, table, machine, times) for phase, table in tables.items()),
        "</div>",
        attention_section(maps, layer, head, config, ids, spell) if maps else "",
        route_section(routes, spell) if routes else "",
        "<h2>All operations</h2>",
        "<p class=dim>Of a prompt in chunks: the first. Of decode: the last step's work, the median of times.</p>",
        '<p class=script><label>only rows with <input id=filter></label></p>',
        operations_table(tables, machine, times),
        f"<h2>Config</h2>\n<pre>{escape(json.dumps(dataclasses.asdict(config), indent=1))}</pre>",
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def facts(command: str, prompt: str | None, config: Config, machine: Machine) -> str:
    letters = " ".join(f"{letter}={size}" for letter, size in config.letters.items())
    entries = {
        "command": f"<code>{escape(command)}</code>",
        "machine": f"{escape(machine.name)}, measured: {machine.bytes_per_second / 1e9:.1f} GB/s, "
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s",
        "letters": f"<code>{letters}</code>; T tokens of the call, S keys visible",
    }
    if prompt is not None:
        entries["prompt"] = f"<code>{escape(prompt)}</code>"
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in entries.items()) + "</dl>"


def totals(groups: dict, machine: Machine, times: bool) -> str:
    lines = []
    for phase, steps in groups.items():
        if not steps:
            continue
        costs = [span.cost for span in closed(steps[-1].spans) if span.cost]
        floor = sum(map(machine.floor, costs))
        seconds = statistics.median(step.seconds for step in steps) if times else floor
        moved = sum(cost.read + cost.written for cost in costs)
        cells = [
            phase,
            len(steps),
            steps[-1].tokens,
            steps[-1].context,
            duration(seconds),
            f"{steps[-1].tokens / seconds:.1f}",
        ]
        cells += [
            si(sum(cost.flops for cost in costs)),
            si(moved) + "B",
            duration(floor),
            f"{100 * floor / seconds:.0f} %",
        ]
        lines.append("<tr>" + "".join(f"<td class=n>{cell}</td>" for cell in cells) + "</tr>")
    heads = (
        "phase",
        "steps",
        "tokens",
        "keys",
        "time" if times else "floor",
        "tokens/s",
        "FLOP",
        "bytes",
        "floor",
        "floor/time",
    )
    top = "".join(f"<th class=n>{head}</th>" for head in heads)
    return f"<div class=wide><table><tr>{top}</tr>{''.join(lines)}</table></div>"


def cells(phase: str, row: Row, machine: Machine, times: bool) -> list[tuple[str, object]]:
    """What the sortable table shows of an operation: text, and the value that it is sorted by (None: the text)."""
    span, cost = row.span, row.span.cost
    seconds = row.seconds if times else machine.floor(cost) if cost else ""
    shown: list[tuple[str, object]] = [(phase, None), (span.path, None), (span.operation, None)]
    shown += [(result(span), None), (duration(seconds) if seconds != "" else "", seconds)]  # type: ignore[arg-type]
    if cost is None:
        return [*shown, ("", ""), ("", ""), ("", ""), ("", ""), ("", None)]
    floor, bound = machine.floor(cost), machine.bound(cost)
    work = [(si(cost.flops), cost.flops), (si(cost.read) + "B", cost.read), (si(cost.written) + "B", cost.written)]
    return [*shown, *work, (duration(floor), floor), (bound, None)]


def operations_table(tables: dict, machine: Machine, times: bool) -> str:
    heads = ("phase", "path", "operation", "result", "time", "flops", "read", "written", "floor", "bound")
    lines = []
    for phase, table in tables.items():
        for row in table:
            line = [
                f"<td>{escape(text)}</td>" if value is None else f'<td class=n data-v="{value!r}">{text}</td>'
                if value != "" else '<td class=n data-v=""></td>'
                for text, value in cells(phase, row, machine, times)
            ]  # fmt: skip
            lines.append(f"<tr>{''.join(line)}</tr>")
    head = "".join(f"<th{' class=n' if 4 <= n < 9 else ''}>{name}</th>" for n, name in enumerate(heads))
    body = "\n".join(lines)
    return f"<div class=wide><table id=operations><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def layers(phase: str, table: list[Row], machine: Machine, times: bool) -> str:
    """What comes before the layers, each layer to unfold, what comes after; bars are shares of the longest."""
    before, found, after = split_layers(table)

    def seconds(row: Row) -> float:
        return row.seconds if times else machine.floor(row.span.cost) if row.span.cost else 0.0

    longest = max((seconds(row) for row in table if row.span.cost), default=0.0) or 1.0

    def lines(some: list[Row], above: str = "") -> str:
        out, parents = [], [above] * 99  # the path around each depth
        for row in some:
            span, cost = row.span, row.span.cost
            parents[span.depth] = f"{span.path}."
            name = span.path.removeprefix(parents[span.depth - 1])
            bar = f' class="n bar" style="--w:{100 * seconds(row) / longest:.0f}%"' if cost else ' class="n dim"'
            share = f"{machine.bound(cost)} {100 * machine.floor(cost) / (seconds(row) or 1):.0f} %" if cost else ""
            out.append(
                f"<tr><td>{'  ' * span.depth}{escape(name)}</td><td>{escape(result(span))}</td>"
                f"<td{bar}>{duration(seconds(row)) if seconds(row) else ''}</td><td>{share}</td></tr>"
            )
        return f"<div class=wide><table>{''.join(out)}</table></div>"

    parts = [f"<div><h3>{phase}</h3>", lines(before)]
    for layer in found:
        took = f" <span class=dim>{duration(layer.rows[0].seconds)}</span>" if times else ""
        is_open = " open" if layer is found[0] else ""
        parts.append(
            f'<details id="{phase}.layers.{layer.number}"{is_open}><summary>layers.{layer.number}{took}</summary>'
            f"{lines(layer.rows[1:], f'layers.{layer.number}.')}</details>"
        )
    return "\n".join([*parts, lines(after), "</div>"])


# ---- what was captured ---------------------------------------------------------------------------------------------


def attention_section(
    maps: Sequence[AttentionMap], layer: int, head: int, config: Config, ids: Sequence[int], spell: Spell
) -> str:
    whole = joined(maps, maps[0].sequence, last=ROWS)
    H, T, S = whole.weights_HTS.shape
    R = H // config.num_key_value_heads
    group, first = head // R, max(1, S - 2 * ROWS + 1)
    keys = [0, *range(first, S)]  # the first key always: much attention rests there
    cut = f" Keys 0 and {first} to {S - 1}." if first > 1 else ""
    parts = [
        f"<h2>Attention of layer {layer}</h2>",
        f"<p>KV head {group} serves query heads {group * R} to {group * R + R - 1}. Rows: the last {T} queries; "
        f"columns: keys; dark: much weight.{cut}</p>",
    ]
    entropy_H, sink_H = whole.entropy_HT.mean(1), whole.sink_HT.mean(1)
    for one in range(group * R, group * R + R):
        caption = f"head {one}<br><span class=dim>{entropy_H[one]:.2f} bits, first key {100 * sink_H[one]:.0f} %</span>"
        picture = heat_map(whole.weights_HTS[one][:, keys], max(2, 160 // max(T, 1)), title=f"head {one}")
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    names = [f"{label(spell(ids[t]), 10).plain.strip()} {t}" for t in range(S - T, S)]
    parts.append(f"<h3>head {head}</h3><div class=wide>{heat_map(whole.weights_HTS[head][:, keys], 15, names)}</div>")
    return "\n".join(parts)


def route_section(routes: Sequence[Routing], spell: Spell) -> str:
    parts = ["<h2>Router</h2>", "<p>Rows: tokens; columns: experts; dark: much weight.</p>"]
    for route in routes:
        T, E = route.probability_TE.shape
        chosen_TE = np.zeros((T, E))
        np.put_along_axis(chosen_TE, route.expert_TA, route.weight_TA, axis=1)
        names = [
            f"{label(spell(int(token)), 10).plain.strip()} {at}" for token, at in zip(route.token_T, route.position_T)
        ]
        load_E, ties = route.load_E, int(route.tied_T.sum())
        closest = "" if np.isnan(route.margin_T).all() else f", closest margin {np.nanmin(route.margin_T):.2g}"
        parts.append(
            f"<details{' open' if route is routes[0] else ''}><summary>layers.{route.layer} <span class=dim>busiest "
            f"expert {load_E.argmax()}: {load_E.max()} of {T} tokens, {int((load_E == 0).sum())} idle, {ties} ties"
            f"{closest}, shared gate {route.gate_T.mean():.2f}</span></summary><div class=wide>"
            f"{heat_map(chosen_TE[-ROWS:], 15, names[-ROWS:])}</div></details>"
        )
    return "\n".join(parts)
