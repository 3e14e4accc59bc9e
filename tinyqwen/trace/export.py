"""A trace for other programs: JSON lines, Chrome's and Perfetto's timeline, and any view as an SVG picture.

The page for people is in `page.py`. Nothing written here points to anywhere else: no fonts, scripts or pictures that
would have to be fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tinyqwen.files import write
from tinyqwen.machine import Machine
from tinyqwen.trace.record import TracedStep

# rich's own frame, without the web font that it would ask for.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def span_facts(number: int, step: TracedStep, span, machine: Machine) -> dict:
    """Everything that tables and pictures are made of, for one operation; times in seconds, work in bytes and FLOPs."""
    cost = span.cost
    work = {"flops": cost.flops, "read": cost.read, "written": cost.written} if cost else {}
    floor = {"floor_s": machine.floor(cost), "bound": machine.bound(cost)} if cost else {}
    return {
        "step": number, "phase": step.phase, "path": span.path, "operation": span.operation, "depth": span.depth,
        "shape": span.shape, "dtype": str(span.dtype), "start_s": span.start, "time_s": span.seconds,
        "weights": span.weights, "replaced": span.replaced, **work, **floor,
    }  # fmt: skip


def write_jsonl(steps: Sequence[TracedStep], machine: Machine, target: str) -> None:
    """One object per operation and line, in order of starting."""
    lines = [
        json.dumps(span_facts(number, step, span, machine)) for number, step in enumerate(steps) for span in step.spans
    ]
    write("\n".join(lines) + "\n", target)


def chrome_events(steps: Sequence[TracedStep], machine: Machine) -> dict:
    """The timeline in the Trace Event format: complete events ("X"), times in microseconds.

    Prefill and decode are two processes. Operations nest by time: what ran inside another lies below it. Each step is
    an event, too, around its operations.

    Source: "Trace Event Format", Google 2016; Perfetto and chrome://tracing read it.
    """
    process = {"prefill": 1, "decode": 2}
    events = []
    for phase in dict.fromkeys(step.phase for step in steps):
        at = {"ph": "M", "pid": process[phase], "tid": 1}
        events.append({**at, "name": "process_name", "args": {"name": phase}})
        events.append({**at, "name": "thread_name", "args": {"name": "operations"}})
    origin = steps[0].spans[0].start

    def event(name, category, phase, start, end, args) -> dict:
        return {
            "name": name, "cat": category, "ph": "X", "pid": process[phase], "tid": 1,
            "ts": (start - origin) * 1e6, "dur": (end - start) * 1e6, "args": args,
        }  # fmt: skip

    for number, step in enumerate(steps):
        start, end = step.spans[0].start, max(span.end for span in step.spans)
        size = {"tokens": step.tokens, "keys": step.context}
        events.append(event(f"step {number}: {step.tokens} tokens", "step", step.phase, start, end, size))
        for span in step.spans:
            facts = span_facts(number, step, span, machine)
            hidden = {"phase", "start_s", "time_s", "step"}
            args = {name: value for name, value in facts.items() if name not in hidden}
            events.append(event(span.path, span.operation, step.phase, span.start, span.end, args))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_chrome(steps: Sequence[TracedStep], machine: Machine, target: str) -> None:
    write(json.dumps(chrome_events(steps, machine)), target)


def write_svg(console, title: str, target: str) -> None:
    """What a rich Console(record=True) has shown so far, as a picture."""
    write(console.export_svg(title=title, code_format=SVG, unique_id="trace", clear=False), target)
