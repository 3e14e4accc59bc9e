"""What a model will need and how fast it can be, without downloading it: it runs on shapes alone.

Without --size or --model, all published sizes: which fit where. Times are floors, from datasheets or (--device this)
from what this machine was measured to do: real ones are longer, never shorter.

  tinyqwen plan --size 72B --context 131072 --dtype int4
  tinyqwen plan --size 7B --yarn 4 --kv-dtype int8
"""

from __future__ import annotations

import argparse
import json

from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.context import LONGEST, advice
from tinyqwen.devices import DEVICES, device_named
from tinyqwen.errors import UsageError
from tinyqwen.formats import FORMATS, shape_weights, weight_bytes
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.machine import Machine, measure
from tinyqwen.plan import ROOMS, kv_bytes_per_token, memory, work
from tinyqwen.sizes import SIZES, size_named

USUAL = 4096  # tokens, when nobody says


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context",
        "-c",
        type=int,
        metavar="N",
        help=f"tokens (default {USUAL}; with --yarn or --dca, all that it makes room for)",
    )
    options.add_context_arguments(parser)
    options.add_ignore_argument(parser)
    parser.add_argument("--dtype", choices=FORMATS, default="bf16", help="how weights are stored (default bf16)")
    parser.add_argument(
        "--kv-dtype", "--kv", choices=KV_FORMATS, default="bf16", help="how the cache is stored (default bf16)"
    )
    parser.add_argument("--device", metavar="NAME", help=f"this, or one of {', '.join(DEVICES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options.add_model_arguments(parser, otherwise="all published sizes")


def run(arguments: argparse.Namespace) -> int:
    if arguments.context is not None and not 1 <= arguments.context <= LONGEST:
        raise UsageError(f"--context must be from 1 to {LONGEST}, is {arguments.context}")
    machines = machines_of(arguments.device)
    if arguments.model or arguments.size:
        config = options.config_of(arguments)
        name = arguments.model or size_named(arguments.size).hub_id(arguments.base)
        facts = plan_one(str(name), config, arguments, machines)
    elif arguments.yarn is not None or arguments.dca is not None:
        raise UsageError("--yarn and --dca are about one model; name it with --size or --model")
    else:
        facts = plan_all(arguments)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    elif "sizes" in facts:
        show_all(facts)
    else:
        show_one(facts)
    return 0


def machines_of(name: str | None) -> dict[str, tuple[float | None, Machine]]:
    """The devices to plan for: memory in bytes (None: not known) and limits."""
    if name is not None and name.lower() == "this":
        machine = measure()
        return {"this machine": (None, machine)}
    chosen = DEVICES if name is None else {name: device_named(name)}
    return {
        key: (device.memory * 1e9, Machine(key, device.bandwidth * 1e9, device.teraflops * 1e12))
        for key, device in chosen.items()
    }


def plan_one(name: str, config: Config, arguments: argparse.Namespace, machines: dict) -> dict:
    """Everything about one model at one context, in one format."""
    weights = shape_weights(config, arguments.dtype)
    context = arguments.context or (USUAL if config.context == config.trained_context else config.context)
    needed = memory(config, context, arguments.dtype, arguments.kv_dtype)
    kv_scale = kv_bytes_per_token(config, arguments.kv_dtype) / kv_bytes_per_token(config, "f32")
    first, last, prompt = (work(config, weights, *size) for size in ((1, 1), (1, context), (context, context)))
    devices = {}
    for device, (room, machine) in machines.items():
        devices[device] = {
            "fits": None if room is None else needed.total <= room,
            "decode_tokens_per_s_empty": 1 / first.floor(machine, kv_scale),
            "decode_tokens_per_s_full": 1 / last.floor(machine, kv_scale),
            "prefill_s": prompt.floor(machine, kv_scale),
        }
    other = needed.total - needed.weights
    return {
        "model": name,
        "context": context,
        "context_of_model": config.context,
        "dtype": arguments.dtype,
        "kv": arguments.kv_dtype,
        "beyond": None if context <= config.context else advice(config, context),
        "memory": {**needed._asdict(), "total": needed.total},
        "per_token": {
            "flops_empty": first.flops,
            "flops_full": last.flops,
            "bytes_empty": round(first.moved(kv_scale)),
            "bytes_full": round(last.moved(kv_scale)),
        },
        "prefill_flops": prompt.flops,
        "fits": {format: rooms(weight_bytes(config, format) + other) for format in FORMATS},
        "devices": devices,
    }


def plan_all(arguments: argparse.Namespace) -> dict:
    """Which sizes fit where, in every format."""
    sizes, context, kv = {}, arguments.context or USUAL, arguments.kv_dtype
    for name, size in SIZES.items():
        config = size.config(arguments.base)
        needed = memory(config, context, kv=kv)
        other = needed.total - needed.weights
        totals = {format: weight_bytes(config, format) + other for format in FORMATS}
        sizes[name] = {"total": totals, "fits": {format: rooms(total) for format, total in totals.items()}}
    return {"context": context, "kv": kv, "sizes": sizes}


def rooms(total: int) -> list[int]:
    """Which of the usual memories hold that many bytes.

    >>> rooms(20 * 10**9)
    [24, 80]
    """
    return [room for room in ROOMS if total <= room * 10**9]


def show_all(facts: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("--size", no_wrap=True)
    for format in FORMATS:
        table.add_column(format, justify="right", no_wrap=True)
        table.add_column("in", no_wrap=True)
    for name, row in facts["sizes"].items():
        cells = []
        for format in FORMATS:
            smallest = row["fits"][format][:1]
            cells += [f"{row['total'][format] / 1e9:.1f} GB", f"{smallest[0]} GB" if smallest else "-"]
        table.add_row(Text(name), *map(Text, cells))
    console = Console(highlight=False)
    console.print(f"weights, {facts['kv']} cache of {facts['context']:,} tokens and intermediate results, all in all,")
    console.print(f"in each format of weights, and the smallest of {', '.join(map(str, ROOMS))} GB that it fits in:")
    console.print(table)


def show_one(facts: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    memory, per_token = facts["memory"], facts["per_token"]
    console.print(f"{facts['model']}: {facts['dtype']} weights, {facts['kv']} cache, {facts['context']:,} tokens")
    if facts["beyond"]:
        console.print(f"the model looks at {facts['context_of_model']:,} tokens; {facts['beyond']}")
    table = Table(box=None, show_header=False, pad_edge=False)
    names = {"kv": "KV cache", "scores": "(+ scores, in NumPy)"}
    for name in ("weights", "kv", "activations", "logits", "total", "scores"):
        size = memory[name]
        table.add_row(names.get(name, name), Text(f"{size:,} bytes", justify="right"), f"{size / 1e9:.2f} GB")
    console.print(table)
    for where, key in (("the first token", "empty"), (f"token {facts['context']:,}", "full")):
        console.print(
            f"{where}: {per_token[f'flops_{key}'] / 1e9:.2f} GFLOP, {per_token[f'bytes_{key}'] / 1e9:.3f} GB moved"
        )
    console.print(f"a prompt of {facts['context']:,} tokens: {facts['prefill_flops'] / 1e12:,.1f} TFLOP\n")

    table = Table("weights", *(f"{room} GB" for room in ROOMS), box=None, header_style="bold", pad_edge=False)
    for format, fitting in facts["fits"].items():
        table.add_row(format, *("fits" if room in fitting else "-" for room in ROOMS))
    console.print(table)
    console.print()

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("at best on", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for heading in ("first token/s", "last token/s", "prompt"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in facts["devices"].items():
        fits = {True: "yes", False: "no", None: ""}[row["fits"]]
        speeds = f"{row['decode_tokens_per_s_empty']:,.1f}", f"{row['decode_tokens_per_s_full']:,.1f}"
        table.add_row(name, fits, *speeds, f"{row['prefill_s']:,.2f} s")
    console.print(table)
