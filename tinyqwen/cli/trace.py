"""Watch every operation of a prompt and of some decoded tokens: shapes, times, distance from this machine's limit.

Equal layers are folded into one; --layer N opens another, --layer all opens all. With --backend meta nothing is
computed and nothing downloaded: shapes, work and the least time that this machine would need, for any size.

  tinyqwen trace --size 0.5B "Why is the sky blue?" --decode 8
  tinyqwen trace --backend meta --size 57B-A14B
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import backends
from backends import Backend, shape_only
from tinyqwen.cli import options
from tinyqwen.cli.options import read_text
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import UsageError
from tinyqwen.generate import Running
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling
from tinyqwen.sizes import SIZES
from tinyqwen.trace.machine import Machine, measure, seconds_per_span
from tinyqwen.trace.record import TracedStep, record
from tinyqwen.weights import Node, fill, tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; - or @FILE reads it")
    parser.add_argument("--decode", type=int, default=8, metavar="N", help="tokens to decode (default 8)")
    parser.add_argument("--layer", default="0", metavar="N|all", help="the layer to open (default 0)")
    parser.add_argument("--raw", action="store_true", help="no chat template: the prompt as it stands")
    parser.add_argument("--backend", default="numpy", choices=[*backends.NAMES, "meta"], help="where to run")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="with meta: tokens of prompt (default 32)")
    parser.add_argument("--jsonl", metavar="FILE", help="write one JSON object per operation (- for standard output)")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    opened = parse_layer(arguments.layer)
    if arguments.decode < 1 or arguments.tokens < 1:
        raise UsageError("--decode and --tokens must be at least 1")
    if arguments.backend == "meta":
        backend, config, weights, ids, vocabulary = shapes_of(arguments)
    else:
        backend, config, weights, ids, vocabulary = model_of(arguments)
    if opened is not None and opened >= config.num_hidden_layers:
        raise UsageError(f"--layer {opened}: the model has layers 0 to {config.num_hidden_layers - 1}")
    if not arguments.quiet:
        print("measuring this machine ...", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    machine = measure()
    running = Running(
        ids, KVCache(backend, config), Sampling(), config.max_position_embeddings, max_new_tokens=arguments.decode + 1
    )
    steps = record(backend, config, weights, running, vocabulary=vocabulary)
    if arguments.jsonl:
        write_jsonl(steps, machine, arguments.jsonl)
    if arguments.jsonl != "-":
        show(arguments, config, steps, machine, opened)
    return 0


def parse_layer(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--layer must be a number or all, is {text!r}")
    return int(text)


def model_of(arguments: argparse.Namespace) -> tuple[Backend, Config, Node, list[int], int]:
    """A real model and the ids of the prompt."""
    from tinyqwen.runtime import load

    if arguments.prompt is None:
        raise UsageError('no prompt: write one, as in: tinyqwen trace --size 0.5B "Why is the sky blue?"')
    prompt = read_text(arguments.prompt, "prompt")
    folder = options.model_folder(arguments)
    with options.progress_bar("loading", quiet=arguments.quiet) as update:
        runtime = load(folder, backend=arguments.backend, progress=update)
    ids = (
        runtime.tokenizer.encode(prompt)
        if arguments.raw
        else runtime.encode_chat([{"role": "user", "content": prompt}])
    )
    return runtime.backend, runtime.config, runtime.checkpoint.weights, ids, runtime.tokenizer.size


def shapes_of(arguments: argparse.Namespace) -> tuple[Backend, Config, Node, list[int], int]:
    """A model without data: of a published size, or of a folder's config.json."""
    if arguments.size and not arguments.model:
        if arguments.size not in SIZES:
            raise UsageError(f"no size {arguments.size!r}; there are {', '.join(SIZES)}")
        config = SIZES[arguments.size].config(arguments.base)
    else:
        config = read_config(options.model_folder(arguments, weights=False) / "config.json")
    weights = tree(fill(config, lambda name, shape: shape_only(shape)))
    return backends.get("meta"), config, weights, [0] * arguments.tokens, config.vocab_size


def show(arguments, config: Config, steps: list[TracedStep], machine: Machine, opened: int | None) -> None:
    from rich.console import Console

    from tinyqwen.trace.table import print_trace

    console = Console()
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = 100
    console.print(
        f"{arguments.size or arguments.model}, backend {arguments.backend}, float32. This machine, measured now: "
        f"{machine.bytes_per_second / 1e9:.0f} GB/s, {machine.flops_per_second / 1e9:.0f} GFLOP/s",
        highlight=False,
    )
    letters = " ".join(f"{letter}={size}" for letter, size in config.letters.items())
    console.print(f"{letters}; T tokens of the call, S keys visible\n", highlight=False, style="dim")
    times = arguments.backend != "meta"
    print_trace(console, steps, machine, opened=opened, overhead=seconds_per_span() if times else 0.0, times=times)


def write_jsonl(steps: list[TracedStep], machine: Machine, target: str) -> None:
    """One object per operation: everything that the table is made of."""
    lines = []
    for number, step in enumerate(steps):
        for span in step.spans:
            cost = span.cost
            work = {"flops": cost.flops, "read": cost.read, "written": cost.written} if cost else {}
            floor = {"floor_s": machine.floor(cost), "bound": machine.bound(cost)} if cost else {}
            lines.append(
                json.dumps(
                    {
                        "step": number, "phase": step.phase, "path": span.path, "operation": span.operation,
                        "depth": span.depth, "shape": span.shape, "dtype": str(span.dtype), "start_s": span.start,
                        "time_s": span.seconds, "weights": span.weights, "replaced": span.replaced, **work, **floor,
                    }
                )
            )  # fmt: skip
    text = "\n".join(lines) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
