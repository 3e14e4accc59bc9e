"""Watch every operation of a prompt and of some decoded tokens: shapes, times, distance from this machine's limit.

Equal layers are folded into one; --layer N opens another, --layer all opens all. With --backend meta nothing is
computed and nothing downloaded: shapes, work and the least time that this machine would need, for any size. With
--backend cuda each operation is waited for, so that its time is its own; unwatched, a token is one launch of them all.

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
import sys

from tinyqwen.cli import options
from tinyqwen.cli.trace_show import console_of, page_of, show_config, show_run, show_values
from tinyqwen.cli.trace_subject import Subject, subject_of
from tinyqwen.config import Config
from tinyqwen.devices import device_named
from tinyqwen.errors import UsageError
from tinyqwen.files import check_target, write
from tinyqwen.generate import generate
from tinyqwen.machine import Machine, limits_of
from tinyqwen.trace import export
from tinyqwen.trace.record import Recorder, TracedStep, record

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
    options.add_backend_arguments(parser, *options.GPU, "meta")
    options.add_format_arguments(parser)
    options.add_cache_arguments(parser)
    options.add_context_arguments(parser)
    options.add_ignore_argument(parser)
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="with meta: tokens of prompt (default 32)")
    parser.add_argument("--jsonl", metavar="FILE", help="write one JSON object per operation (- for standard output)")
    parser.add_argument("--chrome", metavar="FILE", help="write a timeline for Perfetto or chrome://tracing")
    parser.add_argument("--html", metavar="FILE", help="write all of it as one page that needs no network")
    parser.add_argument("--svg", metavar="FILE", help="write what is shown as a picture")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    check_flags(arguments)
    layer = parse_layer(arguments.layer)
    if arguments.view in OF_CONFIG:
        config = options.config_of(arguments)
        check_layer(layer, config)
        show_config(arguments, config)
        return 0
    subject = subject_of(arguments)
    check_layer(layer, subject.config)
    check_head(arguments.head, subject.config)
    if arguments.view in OF_VALUES:
        show_values(arguments, subject, layer)
        return 0
    machine = machine_of(arguments, subject)
    steps = watch(arguments, subject)
    if arguments.explain:
        from tinyqwen.trace.explain import find

        find(steps[0].spans, arguments.explain)  # complains before anything is written
    if arguments.jsonl:
        export.write_jsonl(steps, machine, arguments.jsonl)
    if arguments.chrome:
        export.write_chrome(steps, machine, arguments.chrome)
    if arguments.html:
        write(page_of(arguments, subject, steps, machine, layer or 0), arguments.html)
    if arguments.jsonl != "-":
        show_run(arguments, subject, steps, machine, 0 if arguments.layer is None else layer)
    return 0


def machine_of(arguments: argparse.Namespace, subject: Subject) -> Machine:
    """The limits to compare with: those of what runs it, measured now, or a datasheet's."""
    if arguments.device:
        device = device_named(arguments.device)
        return Machine(arguments.device, device.bandwidth * 1e9, device.teraflops * 1e12)
    if not arguments.quiet:
        print("measuring this machine ...", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    return limits_of(subject.backend)


def watch(arguments: argparse.Namespace, subject: Subject) -> list[TracedStep]:
    """Run it under a tracer, with --live under a frame that shows text, time and cache."""
    running = subject.start(arguments.decode + 1)
    if not arguments.live:
        return record(subject.backend, subject.config, subject.weights, running, vocabulary=subject.vocabulary,
                      sketch=subject.sketch)  # fmt: skip
    from tinyqwen.trace import live

    recorder = Recorder(subject.backend, subject.weights, running)
    events = generate(
        recorder.backend, subject.config, subject.weights, [running], vocabulary=subject.vocabulary,
        before_step=recorder.before_step, sketch=lambda: subject.sketch,
    )  # fmt: skip
    live.watch(console_of(arguments), events, recorder, subject.tokenizer)
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
            check_target(target)
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
