"""The trace as a table: what each operation made, how long it took, and how far that is from this machine's limit.

Equal layers are folded into one line, with one of them opened. Fits 100 columns; with less room some columns go, and
long names lose their ends before any number loses a digit.
"""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.tracing import closed
from tinyqwen.machine import Machine
from tinyqwen.trace.record import SHORT, Layer, Row, TracedStep, rows, split_layers

# The axes of each operation's result; a test holds them against the sizes of a real run.
LETTERS = {
    "take_rows": "TD", "rope_tables": "TKh", "rms_norm": "TD", "linear": "TO", "rope": "TNK", "update_cache": "GSK",
    "attention": "THK", "scores": "GRTS", "mix": "GRTK", "swiglu": "TF", "add": "TD", "route": "TA", "experts": "TD",
    "sigmoid_gate": "TD", "decoder_layer": "TD", "self_attention": "TD", "feed_forward": "TD", "sparse_moe": "TD",
    "dual_chunk_tables": "TKh", "sharpen": "TKh", "dual_chunk_attention": "THK", "sliding_window_attention": "THK",
    "attention_part": "THK",
    "softmax_part": "GRTS", "merge_parts": "THK",
}  # fmt: skip
LATENCY = 20e-6  # below this many seconds, starting the work is most of it


def print_trace(
    console: Console,
    steps: list[TracedStep],
    machine: Machine,
    *,
    opened: int | None,
    overhead: float,
    times: bool = True,
) -> None:
    """Prefill and decode, a table each.

    opened     the layer to show in full; None for all
    overhead   seconds that one record costs
    times      False for a run on shapes alone: predicted times stand in for measured ones
    """
    for phase in ("prefill", "decode"):
        some = [step for step in steps if step.phase == phase]
        if some:
            print_phase(console, phase, some, machine, opened=opened, overhead=overhead, times=times)


def print_phase(console, phase, steps, machine, *, opened, overhead, times) -> None:
    columns = columns_of(console.width, times)
    what = f"{steps[0].tokens} tokens" if phase == "prefill" else f"median of {len(steps)} steps"
    console.print(f"[bold]{phase}[/bold]: {what}, {steps[-1].context} keys visible at the end", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in columns:
        left = heading in ("operation", "result", "bound")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")

    before, layers, after = split_layers(rows(steps))
    shown = fold(layers, opened)
    for row in before:
        add(table, row, row.span.path, machine, columns, times)
    for layer, folded in shown:
        add_layer(table, layer, folded, machine, columns, times)
    for row in after:
        add(table, row, row.span.path, machine, columns, times)
    numbers = sum(max(len(str(cell)) for cell in (column.header, *column.cells)) + 1 for column in table.columns[1:])
    table.columns[0].max_width = max(10, console.width - numbers - 1)
    console.print(table)
    for layer, folded in shown if times else []:
        if folded:
            seconds = [one.rows[0].seconds for one in (layer, *folded)]
            spread = f"{duration(min(seconds))} to {duration(max(seconds))}"
            median = duration(statistics.median(seconds))
            console.print(f"{len(seconds)} alike: median {median}, {spread} a layer", highlight=False)
    print_total(console, phase, steps, machine, overhead, times)
    console.print()


def columns_of(width: int, times: bool) -> tuple[str, ...]:
    """What there is room for.

    >>> columns_of(80, times=True), columns_of(40, times=False)
    (('operation', 'result', 'time', 'FLOP', 'bytes', 'bound'), ('operation', 'floor', 'bound'))
    """
    time = "time" if times else "floor"
    if width < 72:
        return "operation", time, "bound"
    return "operation", "result", time, "FLOP", "bytes", *(["rate"] if width >= 96 else []), "bound"


def fold(layers: list[Layer], opened: int | None) -> list[tuple[Layer, list[Layer]]]:
    """Which layers to show, each with the equal ones that it stands for.

    Of each kind of layer one is shown: the opened one if it is of that kind, else the first. `opened` None shows all.
    """
    if opened is None:
        return [(layer, []) for layer in layers]
    kinds: dict[tuple, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.same, []).append(layer)
    shown = []
    for alike in kinds.values():
        chosen = next((layer for layer in alike if layer.number == opened), alike[0])
        shown.append((chosen, [layer for layer in alike if layer is not chosen]))
    return sorted(shown, key=lambda pair: pair[0].number)


def add_layer(table, layer: Layer, folded: list[Layer], machine, columns, times) -> None:
    """A layer's own line, and below it its operations, each named within the one that it ran inside of."""
    label = Text(f"layers.{layer.number}", style="bold")
    if folded:
        label.append(f" and {ranges([other.number for other in folded])}", style="dim")
    time = duration(layer.rows[0].seconds) if times else ""
    alike = Text(f"{len(folded) + 1} alike" if folded else "", style="dim")
    add_cells(table, columns, {"operation": label, "result": alike, "time": Text(time, style="dim")})
    parents = [layer.rows[0].span.path]
    for row in layer.rows[1:]:
        del parents[row.span.depth :]
        name = row.span.path.removeprefix(f"{parents[-1]}.")
        parents.append(row.span.path)
        add(table, row, "  " * row.span.depth + name, machine, columns, times)


def ranges(numbers: list[int]) -> str:
    """
    >>> ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)


def add_cells(table, columns: tuple[str, ...], cells: dict[str, Text]) -> None:
    """A line, of whose cells those are shown that there is a column for."""
    table.add_row(*(cells.get(column, Text()) for column in columns))


def add(table, row: Row, label: str, machine: Machine, columns: tuple[str, ...], times: bool) -> None:
    """One line: what it made, its work, its speed, its limit."""
    span, cost = row.span, row.span.cost
    if cost is None:
        time = Text(duration(row.seconds) if times else "", style="dim")
        add_cells(table, columns, {"operation": Text(label, style="dim"), "time": time})
        return
    moved, floor, bound = cost.read + cost.written, machine.floor(cost), machine.bound(cost)
    seconds = row.seconds if times else floor
    speed = (moved if bound == "memory" else cost.flops) / seconds if seconds else 0
    cells = {
        "operation": label + (" *" if span.replaced else ""), "result": result(span),
        "time" if times else "floor": duration(seconds), "FLOP": si(cost.flops), "bytes": si(moved) + "B",
        "rate": f"{si(speed)}{'B/s' if bound == 'memory' else 'FLOP/s'}",
        "bound": limit(bound, floor, seconds, bar="rate" in columns) if times else bound,
    }  # fmt: skip
    add_cells(table, columns, {name: Text(cell) for name, cell in cells.items()})


def result(span) -> str:
    """Letters, sizes and type of a result: `TO 1x896 f32`."""
    sizes = "x".join(map(str, span.shape))
    return f"{LETTERS.get(span.operation, '')} {sizes} {SHORT.get(str(span.dtype), str(span.dtype))}".strip()


def limit(bound: str, floor: float, seconds: float, bar: bool = True) -> str:
    """What holds an operation up, and how near it is to that limit.

    >>> limit("memory", 0.008, 0.010), limit("memory", 1e-7, 5e-6)
    ('memory   80 % ####', 'latency')
    """
    share = floor / seconds if seconds else 0.0
    if seconds < LATENCY and share < 0.5:
        return "latency"
    return f"{bound:<7} {100 * share:3.0f} % {'#' * min(5, round(5 * share)) if bar else ''}".rstrip()


def si(number: float) -> str:
    """Three digits and a prefix.

    >>> [si(x) for x in (0, 950, 14097970000, 7.047e9, 1e15)]
    ['0 ', '950 ', '14.1 G', '7.05 G', '1.00 P']
    """
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= unit:
            value = number / unit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {prefix}"
    return f"{number:.0f} "


def duration(seconds: float) -> str:
    """
    >>> [duration(x) for x in (2.5, 0.0123, 0.000004)]
    ['2.50 s', '12.30 ms', '4.0 us']
    """
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def print_total(console, phase, steps, machine, overhead, times) -> None:
    """The sum, the floor under it, and what watching cost."""
    costs = [span.cost for span in closed(steps[-1].spans) if span.cost]
    floor = sum(machine.floor(cost) for cost in costs)
    flops, moved = sum(cost.flops for cost in costs), sum(cost.read + cost.written for cost in costs)
    tokens = steps[-1].tokens
    parts = [f"{si(flops)}FLOP", f"{si(moved)}B", f"floor {duration(floor)}"]
    if times:
        seconds = statistics.median(step.seconds for step in steps)
        parts.insert(0, f"{duration(seconds)} · {tokens / seconds:.1f} tokens/s")
        parts[-1] += f" ({100 * floor / seconds:.0f} %)"
        records = len(steps[-1].spans)
        parts.append(f"tracer {100 * records * overhead / seconds:.1f} %")
    else:
        parts.append(f"at best {tokens / floor:.1f} tokens/s")
    console.print(f"total {phase} {' · '.join(parts)}", highlight=False)
