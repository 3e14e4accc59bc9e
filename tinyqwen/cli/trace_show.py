"""What `trace` shows and writes of its subject: the table, an explained operation, the views, the page."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from tinyqwen.cli.trace_subject import Subject
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.machine import Machine, seconds_per_span
from tinyqwen.trace import export
from tinyqwen.trace.attention_maps import attention_maps, attention_weights
from tinyqwen.trace.lens import layer_outputs, lens
from tinyqwen.trace.record import TracedStep
from tinyqwen.trace.routing import routers, routing


def console_of(arguments: argparse.Namespace):
    from rich.console import Console

    console = Console(record=bool(arguments.svg))
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = 100
    return console


def save(arguments: argparse.Namespace, console) -> None:
    if arguments.svg:
        export.write_svg(console, f"tinyqwen trace {arguments.explain or arguments.view}", arguments.svg)


def show_run(arguments, subject: Subject, steps: list[TracedStep], machine: Machine, opened: int | None) -> None:
    """All operations, the layer `opened` among them (None: every layer); or the one that --explain names."""
    from tinyqwen.trace.explain import print_explain
    from tinyqwen.trace.table import print_trace
    from tinyqwen.trace.views import say

    console, config, times = console_of(arguments), subject.config, subject.real
    whose = f"{machine.name} at best" if arguments.device else f"{machine.name}, measured now"
    speeds = f"{machine.bytes_per_second / 1e9:.0f} GB/s, {machine.flops_per_second / 1e9:.0f} GFLOP/s"
    say(console, f"{subject.name}, backend {subject.backend.name}, {subject.stored}; {whose}: {speeds}")
    if arguments.explain:
        say(console, "")
        print_explain(console, config, arguments.explain, steps, machine, times=times)
    else:
        overhead = seconds_per_span(backend=subject.backend) if times else 0.0
        letters = " ".join(f"{letter}={size}" for letter, size in config.letters.items())
        say(console, f"{letters}; T tokens of the call, S keys visible\n", "dim")
        print_trace(console, steps, machine, opened=opened, overhead=overhead, times=times)
    save(arguments, console)


def show_config(arguments: argparse.Namespace, config: Config) -> None:
    from tinyqwen.trace.views_of_plans import print_memory, print_rope

    console = console_of(arguments)
    (print_memory if arguments.view == "mem" else print_rope)(console, config)
    save(arguments, console)


def show_values(arguments: argparse.Namespace, subject: Subject, layer: int | None) -> None:
    """The views of attention, experts and layers' opinions: a generation of which a part of the numbers is kept."""
    from tinyqwen.trace import views

    config, console = subject.config, console_of(arguments)
    if arguments.view == "attention":
        layer, head = layer or 0, arguments.head or 0
        steps, ids = subject.captured(attention_weights(layer), arguments.decode + 1)
        maps, G = attention_maps(steps, layer), config.num_key_value_heads
        views.print_attention(console, maps, ids, subject.spell, layer=layer, head=head, kv_heads=G)
    elif arguments.view == "route":
        sparse = [number for number in range(config.num_hidden_layers) if config.is_sparse(number)]
        if not sparse:
            raise UsageError("--view route: this model is dense, it has no experts to route to")
        layer = views.choose("sparse layer", sparse[0] if layer is None else layer, sparse)
        steps, _ = subject.captured(routers, arguments.decode + 1)
        views.print_route(console, routing(steps)[layer], subject.spell)
    else:
        steps, ids = subject.captured(layer_outputs, arguments.decode + 1)
        found = lens(subject.backend, config, subject.weights, steps, subject.vocabulary)
        views.print_lens(console, found, ids, subject.spell)
    save(arguments, console)


def page_of(arguments, subject: Subject, steps: list[TracedStep], machine: Machine, layer: int) -> str:
    """The HTML page. Its pictures of values come from a second run, so that copying them is in nobody's times."""
    from tinyqwen.trace.page import page

    maps, routes, ids = [], [], []
    if subject.real:
        attention = attention_weights(layer)
        keep = lambda path, operation: attention(path, operation) or routers(path, operation)  # noqa: E731
        kept, ids = subject.captured(keep, arguments.decode + 1)
        maps, routes = attention_maps(kept, layer), list(routing(kept).values())
    return page(
        title=f"{subject.name}, traced on the {subject.backend.name} backend, {subject.stored}",
        command=shlex.join(["python", "-m", "tinyqwen", *arguments.words]), prompt=subject.prompt,
        config=subject.config, machine=machine, steps=steps, times=subject.real, maps=maps, layer=layer,
        head=arguments.head or 0, routes=routes, ids=ids, spell=subject.spell,
    )  # fmt: skip
