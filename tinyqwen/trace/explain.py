"""One operation of a trace, explained: its formula, its source, its sizes, its work, and what would change them."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import tinyqwen.blocks
from backends.interface import Cost, Operation
from backends.tracing import Span, closed
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.formats import shape_weights
from tinyqwen.machine import Machine
from tinyqwen.plan import on_shapes
from tinyqwen.trace.record import TracedStep
from tinyqwen.trace.table import duration, result, si
from tinyqwen.trace.views import say

ROOT = Path(tinyqwen.__file__).parent.parent
SIZES = ((1, 512), (1, 32768), (16, 512), (256, 512))  # tokens, keys: decode, late decode, small and full prefill


def operations() -> dict[str, Operation]:
    """The whole vocabulary by name.

    >>> sorted(operations())[:3]
    ['add', 'attention', 'attention_part']
    """
    names = [f"tinyqwen.blocks.{module.name}" for module in pkgutil.iter_modules(tinyqwen.blocks.__path__)]
    modules = [importlib.import_module(name) for name in (*names, "tinyqwen.kv_cache", "tinyqwen.sampling")]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Operation)}


def find(spans: Sequence[Span], path: str) -> int:
    """The index of the first span at that path; UsageError with near choices if there is none."""
    paths = [span.path for span in spans]
    if path in paths:
        return paths.index(path)
    word = path.rsplit(".", 1)[-1]
    known = list(dict.fromkeys(paths))
    likely = [one for one in known if one.rsplit(".", 1)[-1] == word] or known
    near = sorted(likely, key=lambda one: -difflib.SequenceMatcher(None, path, one).ratio())[:3]
    raise UsageError(f"no operation {path!r} in this trace; did you mean {', '.join(near)}?")


def work(spans: Sequence[Span], index: int) -> Cost:
    """What the operation at that index has to do; of a composite, the sum of its parts."""
    span = spans[index]
    if span.cost is not None:
        return span.cost
    end = next((n for n in range(index + 1, len(spans)) if spans[n].depth <= span.depth), len(spans))
    parts = [one.cost for one in closed(spans[index + 1 : end]) if one.cost]
    return Cost(None, *(sum(getattr(part, name) for part in parts) for name in ("flops", "read", "written")))


def around(spans: Sequence[Span], index: int) -> list[str]:
    """The operations with a cost of their own that it runs inside of, outermost first: a plan must look into them."""
    found, depth = [], spans[index].depth
    for span in reversed(spans[:index]):
        if span.depth < depth:
            depth = span.depth
            if span.cost is not None:
                found.append(span.operation)
    return found[::-1]


def at_sizes(config: Config, path: str, opened: Sequence[str]) -> list[tuple[int, int, Cost]]:
    """Its work at other sizes, as (tokens, keys, cost), by running the model on shapes.

    Empty where the sizes do not decide it: how many tokens reach one expert is the router's choice, and the choice of
    a token comes after the step.

    >>> from tinyqwen.sizes import SIZES as PUBLISHED
    >>> sizes = at_sizes(PUBLISHED["0.5B"].config(), "layers.0.self_attn.attention.scores", ["attention"])
    >>> [(tokens, keys, cost.flops) for tokens, keys, cost in sizes][:2]              # 2 * H * K * tokens * keys
    [(1, 512, 917504), (1, 32768, 58720256)]
    """
    if "experts" in opened:
        return []
    weights, found = shape_weights(config), []
    for tokens, keys in SIZES:
        spans = on_shapes(config, weights, tokens, keys, opened=tuple(opened)).spans
        if any(span.path == path for span in spans):
            found.append((tokens, keys, work(spans, find(spans, path))))
    return found


def formula(operation: Operation) -> str:
    """The first indented block of its file's docstring.

    >>> print(formula(operations()["swiglu"]))
    out = down( silu(gate(x)) * up(x) )        silu(z) = z * sigmoid(z) = z / (1 + exp(-z))
    """
    module = inspect.getmodule(operation.definition)
    lines = (module.__doc__ or "").splitlines() if module else []
    start = next((n for n, line in enumerate(lines) if line.startswith("    ")), len(lines))
    end = next((n for n in range(start, len(lines)) if lines[n] and not lines[n].startswith("    ")), len(lines))
    return textwrap.dedent("\n".join(lines[start:end])).strip()


def source(operation: Operation) -> tuple[str, str]:
    """Where its definition stands, as file:line, and its code without the docstring.

    >>> print(*source(operations()["add"]), sep="\\n")  # doctest: +ELLIPSIS
    tinyqwen/blocks/linear.py:...
    @operation
    def add(backend, x_TD, y_TD):
        return x_TD + y_TD
    """
    lines, first = inspect.getsourcelines(operation.definition)
    file = Path(inspect.getsourcefile(operation.definition) or "").relative_to(ROOT)
    function = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(function, ast.FunctionDef)
    text = function.body[0]
    if ast.get_docstring(function) is not None:
        del lines[text.lineno - 1 : text.end_lineno]
    return f"{file.as_posix()}:{first}", "".join(lines).rstrip()


def print_explain(
    console: Console, config: Config, path: str, steps: Sequence[TracedStep], machine: Machine, *, times: bool = True
) -> None:
    """The operation at that path, from what it means to what it costs on this machine.

    times   False for a run on shapes alone

    Errors: UsageError lists near paths.
    """
    last = {step.phase: step for step in steps}
    index = find(steps[0].spans, path)
    span = steps[0].spans[index]
    operation = operations()[span.operation]
    place, code = source(operation)
    say(console, f"{path}: {span.operation}", "bold")
    say(console, " ".join((operation.__doc__ or "").split("\n\n")[0].split()))
    say(console, "")
    if text := formula(operation):
        say(console, textwrap.indent(text, "    ") + "\n")
    say(console, place, "dim")
    console.print(Text(code), highlight=False)
    if span.replaced:
        say(console, "A faster body ran in its place; this is the definition that it is tested against.", "dim")
    say(console, "")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tokens, keys", no_wrap=True)
    for heading in ("FLOP", "read", "written", "FLOP/byte"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("bound", "floor", *(["time"] if times else [])):
        table.add_column(heading, no_wrap=True)
    for phase, step in last.items():
        at = find(step.spans, path)
        row = cells(work(step.spans, at), machine)
        table.add_row(f"{phase} {step.tokens}, {step.context}", *row, *([duration(step.spans[at].seconds)] * times))
    elsewhere = at_sizes(config, path, around(steps[0].spans, index))
    for tokens, keys, cost in elsewhere:
        table.add_row(f"at {tokens}, {keys}", *cells(cost, machine))
    say(console, f"result: {result(span)} ({', '.join(f'{a}={n}' for a, n in config.letters.items())})")
    console.print(table, highlight=False)
    if not elsewhere:
        say(console, "Other sizes: not told by the shapes (the router chooses, or it runs after the step).", "dim")
    again = sum(one.path == path for one in steps[0].spans) - 1
    if again:
        say(console, f"{again} more of this path in a step; this is the first.", "dim")
    for phase, step in last.items():
        at = find(step.spans, path)
        say(console, f"{phase}: {reason(work(step.spans, at), machine, step.spans[at].weights)}")


def cells(cost: Cost, machine: Machine) -> list[str]:
    intensity = cost.flops / max(1, cost.read + cost.written)
    work_done = [f"{si(cost.flops)}", f"{si(cost.read)}B", f"{si(cost.written)}B", f"{intensity:.3g}"]
    return [*work_done, machine.bound(cost), duration(machine.floor(cost))]


def reason(cost: Cost, machine: Machine, weights: int = 0) -> str:
    """Why it is bound as it is, in a sentence or two.

    weights   bytes of the model's own arrays among what it reads

    >>> print(reason(Cost(None, 2 * 10**9, 10**9, 0), Machine("toy", 1e9, 20e9), weights=10**9))
    2 FLOP per byte, where this machine does 20 in the time of reading one: memory-bound, by a factor of 10. It reads \
weights: more tokens in one step would share them.
    """
    ridge, intensity = (
        machine.flops_per_second / machine.bytes_per_second,
        cost.flops / max(1, cost.read + cost.written),
    )
    if not cost.flops:
        return "It only moves bytes: memory-bound at any size."
    start = f"{intensity:.3g} FLOP per byte, where this machine does {ridge:.3g} in the time of reading one: "
    if machine.bound(cost) == "compute":
        return f"{start}compute-bound, by a factor of {intensity / ridge:.3g}. Fewer bytes would not make it faster."
    advice = "It reads weights: more tokens in one step would share them." if 2 * weights > cost.read else ""
    return f"{start}memory-bound, by a factor of {ridge / intensity:.3g}. {advice}".rstrip()
