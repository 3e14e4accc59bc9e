"""Watch every operation of a prompt and of some decoded tokens: shapes, times, distance from this machine's limit.

Equal layers are folded into one; --layer N opens another, --layer all opens all. With --backend meta nothing is
computed and nothing downloaded: shapes, work and the least time that this machine would need, for any size.

Views: table (all operations), attention (of one layer and head), route (experts of each token), lens (what each layer
would have said); mem and rope need no run, only a config. --explain PATH tells all about one operation.

  tinyqwen trace --size 0.5B "Why is the sky blue?" --decode 8
  tinyqwen trace --backend meta --size 57B-A14B
  tinyqwen trace --size 0.5B "Why is the sky blue?" --view attention --layer 3 --head 5
  tinyqwen trace --backend meta --size 72B --view mem
  tinyqwen trace --backend meta --size 7B --explain layers.0.self_attn.attention.scores
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import Backend, Meta
from tinyqwen.cli import options
from tinyqwen.cli.options import read_text
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.context import check_context, stretched
from tinyqwen.devices import device_named
from tinyqwen.errors import UsageError
from tinyqwen.formats import shape_weights
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.plan import OPENED
from tinyqwen.sampling import Sampling
from tinyqwen.sizes import SIZES
from tinyqwen.tiny import FOLDER
from tinyqwen.trace import capture, export
from tinyqwen.trace.machine import Machine, measure, seconds_per_span
from tinyqwen.trace.record import Recorder, TracedStep, record
from tinyqwen.weights import Node

OF_CONFIG = ("mem", "rope")  # views that need no run
OF_VALUES = ("attention", "route", "lens")  # views that need one with numbers
VIEWS = ("table", *OF_VALUES, *OF_CONFIG)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; - or @FILE reads it")
    parser.add_argument("--decode", type=int, default=8, metavar="N", help="tokens to decode (default 8)")
    parser.add_argument("--view", default="table", choices=VIEWS, help="what to show (default: table)")
    parser.add_argument("--layer", metavar="N|all", help="the layer to open or to look at (default: the first)")
    parser.add_argument("--live", action="store_true", help="show text, time and cache while it runs, then the table")
    parser.add_argument("--device", metavar="NAME", help="compare with a device of the plan command, not this machine")
    parser.add_argument("--head", type=int, metavar="N", help="with attention: the query head drawn large (default 0)")
    parser.add_argument("--explain", metavar="PATH", help="one operation, such as layers.0.self_attn.attention.scores")
    parser.add_argument("--raw", action="store_true", help="no chat template: the prompt as it stands")
    options.add_backend_arguments(parser, "meta")
    options.add_format_arguments(parser)
    options.add_cache_arguments(parser)
    options.add_context_arguments(parser)
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="with meta: tokens of prompt (default 32)")
    parser.add_argument("--jsonl", metavar="FILE", help="write one JSON object per operation (- for standard output)")
    parser.add_argument("--chrome", metavar="FILE", help="write a timeline for Perfetto or chrome://tracing")
    parser.add_argument("--html", metavar="FILE", help="write all of it as one page that needs no network")
    parser.add_argument("--svg", metavar="FILE", help="write what is shown as a picture")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)


@dataclass
class Subject:
    """What is traced: a model, a prompt's ids, and how to write a token. Ids from `vocabulary` on have no text."""

    backend: Backend
    config: Config
    weights: Node
    ids: list[int]
    vocabulary: int
    spell: Callable[[int], str]
    prompt: str | None
    format: str  # of the weights
    kv_format: str
    context: int
    tokenizer: Any = None  # of a real model

    def start(self, new_tokens: int) -> Running:
        cache = KVCache(self.backend, self.config, self.kv_format)
        return Running(self.ids, cache, Sampling(), self.context, max_new_tokens=new_tokens)


def run(arguments: argparse.Namespace) -> int:
    check_flags(arguments)
    layer = parse_layer(arguments.layer)
    if arguments.view in OF_CONFIG:
        config = config_of(arguments)
        check_layer(layer, config)
        show_config(arguments, config)
        return 0
    subject = shapes_of(arguments) if arguments.backend == "meta" else model_of(arguments)
    check_layer(layer, subject.config)
    check_head(arguments.head, subject.config)
    if arguments.view in OF_VALUES:
        show_values(arguments, subject, layer)
        return 0
    machine = machine_of(arguments)
    running = subject.start(arguments.decode + 1)
    if arguments.live:
        steps = watch_live(arguments, subject, running)
    else:
        steps = record(subject.backend, subject.config, subject.weights, running, vocabulary=subject.vocabulary)
    if arguments.explain:
        from tinyqwen.trace.explain import find

        find(steps[0].spans, arguments.explain)  # complains before anything is written
    if arguments.jsonl:
        export.write_jsonl(steps, machine, arguments.jsonl)
    if arguments.chrome:
        export.write_chrome(steps, machine, arguments.chrome)
    if arguments.html:
        export.write(make_page(arguments, subject, steps, machine, layer), arguments.html)
    if arguments.jsonl != "-":
        show(arguments, subject, steps, machine, 0 if arguments.layer is None else layer)
    return 0


def machine_of(arguments: argparse.Namespace) -> Machine:
    """The limits to compare with: this machine's, measured now, or a datasheet's."""
    if arguments.device:
        device = device_named(arguments.device)
        return Machine(arguments.device, device.bandwidth * 1e9, device.teraflops * 1e12)
    if not arguments.quiet:
        print("measuring this machine ...", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    return measure()


def watch_live(arguments: argparse.Namespace, subject: Subject, running: Running) -> list[TracedStep]:
    """Run under a frame that shows text, time and cache."""
    from tinyqwen.trace.live import watch

    recorder = Recorder(subject.backend, subject.weights, running)
    events = generate(
        recorder.backend, subject.config, subject.weights, [running], vocabulary=subject.vocabulary,
        before_step=recorder.before_step,
    )  # fmt: skip
    watch(make_console(arguments), events, recorder, subject.tokenizer)
    return recorder.steps()


def check_flags(arguments: argparse.Namespace) -> None:
    """Complain about flags that do not go together, before anything is loaded."""
    view, meta = arguments.view, arguments.backend == "meta"
    if arguments.decode < 1 or arguments.tokens < 1:
        raise UsageError("--decode and --tokens must be at least 1")
    exports = [name for name in ("jsonl", "chrome", "html", "explain") if getattr(arguments, name) is not None]
    if view != "table" and exports:
        raise UsageError(f"--{exports[0]} is about all operations; leave --view {view} away (--svg writes a view)")
    if arguments.device:
        device_named(arguments.device)
    if arguments.live and (meta or view != "table"):
        raise UsageError("--live shows a real run and then the table; leave --backend meta and --view away")
    if view in OF_VALUES and meta:
        raise UsageError(f"--view {view} shows numbers, and the meta backend has shapes alone; take --backend numpy")
    if arguments.chrome and meta:
        raise UsageError("--chrome shows measured times, and the meta backend has none; take --backend numpy")
    if arguments.head is not None and view != "attention" and not arguments.html:
        raise UsageError("--head belongs to --view attention, or to --html")
    if arguments.layer == "all" and view in ("attention", "route"):
        raise UsageError(f"--view {view} shows one layer; name it, as in --layer 0")
    for target in (arguments.jsonl, arguments.chrome, arguments.html, arguments.svg):
        if target is not None:
            export.check_target(target)
    if arguments.svg and arguments.jsonl == "-":
        raise UsageError("--jsonl - shows no table that --svg could draw; write the lines to a file")


def check_layer(layer: int | None, config: Config) -> None:
    if layer is not None and layer >= config.num_hidden_layers:
        raise UsageError(f"--layer {layer}: the model has layers 0 to {config.num_hidden_layers - 1}")


def check_head(head: int | None, config: Config) -> None:
    if head is not None and not 0 <= head < config.num_attention_heads:
        raise UsageError(f"--head {head}: the model has heads 0 to {config.num_attention_heads - 1}")


def parse_layer(text: str | None) -> int | None:
    """A layer's number; None for all of them, and when none is named."""
    if text is None or text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--layer must be a number or all, is {text!r}")
    return int(text)


def model_of(arguments: argparse.Namespace) -> Subject:
    """A real model and the ids of the prompt."""
    from tinyqwen.runtime import load

    if arguments.prompt is None:
        raise UsageError('no prompt: write one, as in: tinyqwen trace --size 0.5B "Why is the sky blue?"')
    prompt = read_text(arguments.prompt, "prompt")
    folder = options.model_folder(arguments)
    quiet, backend = arguments.quiet, {"backend": arguments.backend, "threads": arguments.threads}
    with options.progress_bar("loading", quiet=quiet) as update, options.compiling_line(quiet=quiet) as compiling:
        how = {**backend, **options.format_of(arguments), "yarn": arguments.yarn, "dca": arguments.dca,
               "kv_dtype": arguments.kv_dtype, "context": arguments.context}  # fmt: skip
        runtime = load(folder, **how, progress=update, compiling=compiling)
        runtime.checkpoint.settle()
    if arguments.explain:  # what is inside an operation can be seen where its definition runs
        bodies = runtime.backend.bodies
        runtime.backend.bodies = {name: body for name, body in bodies.items() if name not in OPENED}
    tokenizer = runtime.tokenizer
    ids = tokenizer.encode(prompt) if arguments.raw else runtime.encode_chat([{"role": "user", "content": prompt}])
    spell = lambda token: tokenizer.token_bytes(token, hide_control=False).decode(errors="replace")  # noqa: E731
    return Subject(
        runtime.backend, runtime.config, runtime.checkpoint.weights, ids, tokenizer.size, spell, prompt,
        runtime.checkpoint.format, runtime.kv_format, runtime.context, tokenizer,
    )  # fmt: skip


def shapes_of(arguments: argparse.Namespace) -> Subject:
    """A model without data; to explain what is inside an operation, one that runs the definitions around it."""
    config = config_of(arguments)
    backend = Meta(opened=OPENED if arguments.explain else frozenset())
    format = "f32" if arguments.dtype == "auto" else arguments.dtype
    weights = shape_weights(config, format, arguments.tables or "int8")
    if arguments.context is not None:
        check_context(config, arguments.context)
    kv_format, context = "f32" if arguments.kv_dtype == "auto" else arguments.kv_dtype, arguments.context
    return Subject(
        backend, config, weights, [0] * arguments.tokens, config.vocab_size, str, None, format, kv_format,
        context or config.context,
    )  # fmt: skip


def config_of(arguments: argparse.Namespace) -> Config:
    """Of a published size, or of a folder's config.json; nothing else is read."""
    if arguments.size and not arguments.model:
        if arguments.size not in SIZES:
            raise UsageError(f"no size {arguments.size!r}; there are {', '.join(SIZES)}")
        config = SIZES[arguments.size].config(arguments.base)
    else:
        config = read_config(options.model_folder(arguments, weights=False) / "config.json")
    return stretched(config, arguments.yarn, arguments.dca)


def make_console(arguments: argparse.Namespace):
    from rich.console import Console

    console = Console(record=bool(arguments.svg))
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = 100
    return console


def show(arguments, subject: Subject, steps: list[TracedStep], machine: Machine, opened: int | None) -> None:
    from tinyqwen.trace.explain import print_explain
    from tinyqwen.trace.table import print_trace
    from tinyqwen.trace.views import say

    console, config = make_console(arguments), subject.config
    times = arguments.backend != "meta"
    weights = "float32" if subject.format == "f32" else f"{subject.format} weights"
    whose = f"{machine.name} at best" if arguments.device else "this machine, measured now"
    speeds = f"{machine.bytes_per_second / 1e9:.0f} GB/s, {machine.flops_per_second / 1e9:.0f} GFLOP/s"
    say(console, f"{name_of(arguments)}, backend {arguments.backend}, {weights}; {whose}: {speeds}")
    if arguments.explain:
        say(console, "")
        print_explain(console, config, arguments.explain, steps, machine, times=times)
    else:
        letters = " ".join(f"{letter}={size}" for letter, size in config.letters.items())
        say(console, f"{letters}; T tokens of the call, S keys visible\n", "dim")
        print_trace(console, steps, machine, opened=opened, overhead=seconds_per_span() if times else 0.0, times=times)
    save(arguments, console)


def name_of(arguments: argparse.Namespace) -> str:
    """What the flags call the model; the embedded one has its folder's name."""
    return arguments.size or Path(arguments.model or FOLDER).name or arguments.model


def show_config(arguments: argparse.Namespace, config: Config) -> None:
    from tinyqwen.trace.views_of_plans import print_memory, print_rope

    console = make_console(arguments)
    (print_memory if arguments.view == "mem" else print_rope)(console, config)
    save(arguments, console)


def show_values(arguments: argparse.Namespace, subject: Subject, layer: int | None) -> None:
    """The views of attention, experts and layers' opinions: a generation of which a part of the numbers is kept."""
    from tinyqwen.trace import views

    backend, config, weights = subject.backend, subject.config, subject.weights
    sparse = [number for number in range(config.num_hidden_layers) if config.is_sparse(number)]
    if arguments.view == "route":
        if not sparse:
            raise UsageError("--view route: this model is dense, it has no experts to route to")
        layer = views.choose("sparse layer", sparse[0] if layer is None else layer, sparse)
    running = subject.start(arguments.decode + 1)
    layer = layer or 0
    keep = {
        "attention": capture.attention_weights(layer), "route": capture.routers, "lens": capture.layer_outputs
    }[arguments.view]  # fmt: skip
    steps = capture.capture(backend, config, weights, [running], keep, vocabulary=subject.vocabulary)
    console = make_console(arguments)
    if arguments.view == "attention":
        maps, G = capture.attention_maps(steps, layer), config.num_key_value_heads
        head = arguments.head or 0
        views.print_attention(console, maps, running.ids, subject.spell, layer=layer, head=head, kv_heads=G)
    elif arguments.view == "route":
        views.print_route(console, capture.routing(steps)[layer], subject.spell)
    else:
        found = capture.lens(backend, config, weights, steps, subject.vocabulary)
        views.print_lens(console, found, running.ids, subject.spell)
    save(arguments, console)


def save(arguments: argparse.Namespace, console) -> None:
    if arguments.svg:
        export.write_svg(console, f"tinyqwen trace {arguments.explain or arguments.view}", arguments.svg)


def make_page(arguments, subject: Subject, steps: Sequence[TracedStep], machine: Machine, layer: int | None) -> str:
    """The HTML page. Its pictures of values come from a second run, so that copying them is in nobody's times."""
    from tinyqwen.trace.page import page

    maps, routes, ids = [], [], []
    times, layer = arguments.backend != "meta", layer or 0
    if times:
        running = subject.start(arguments.decode + 1)
        attention = capture.attention_weights(layer)
        kept = capture.capture(
            subject.backend, subject.config, subject.weights, [running],
            lambda path, operation: attention(path, operation) or capture.routers(path, operation),
            vocabulary=subject.vocabulary,
        )  # fmt: skip
        maps, routes, ids = capture.attention_maps(kept, layer), list(capture.routing(kept).values()), running.ids
    return page(
        title=f"{name_of(arguments)}, traced on the {arguments.backend} backend in float32",
        command=command(arguments), prompt=subject.prompt, config=subject.config, machine=machine, steps=steps,
        times=times, maps=maps, layer=layer, head=arguments.head or 0, routes=routes, ids=ids, spell=subject.spell,
    )  # fmt: skip


def command(arguments: argparse.Namespace) -> str:
    """The command line that does this again."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["python", "-m", "tinyqwen", "trace"]
    for name, value in vars(arguments).items():
        if name not in ("verb", "prompt", "debug") and value != parser.get_default(name):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words if arguments.prompt is None else [*words, "--", arguments.prompt])
