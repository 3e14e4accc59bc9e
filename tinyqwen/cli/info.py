"""The published models in numbers, or one model: parameters, memory, KV cache, and what public pages get wrong.

tinyqwen info                  all published sizes
tinyqwen info --size 7B        one of them; nothing is downloaded
tinyqwen info --model FOLDER   the model in that folder, with its stop ids and sampling
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.config_json import written_scaling
from tinyqwen.errors import UsageError
from tinyqwen.formats import FORMATS, weight_bytes
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.plan import kv_bytes_per_token
from tinyqwen.sampling import read_generation_config
from tinyqwen.sizes import CONTRADICTIONS, SIZES, size_named
from tinyqwen.weights import count_parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_context_arguments(parser)
    options.add_ignore_argument(parser)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options.add_model_arguments(parser, otherwise="all published sizes")


def run(arguments: argparse.Namespace) -> int:
    if arguments.model:
        folder = options.model_folder(arguments, weights=False)
        config = options.config_in(folder, arguments)
        facts = {"model": str(arguments.model), **figures(config), **habits(folder, config)}
    elif arguments.size:
        size, config = size_named(arguments.size), options.config_of(arguments)
        facts = {"model": size.hub_id(arguments.base), "licence": size.licence, **figures(config)}
        facts["public pages"] = [*CONTRADICTIONS.get(arguments.size, ()), *CONTRADICTIONS["*"]]
    elif arguments.yarn is not None or arguments.dca is not None:
        raise UsageError("--yarn and --dca are about one model; name it with --size or --model")
    else:
        return list_sizes(arguments)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        show_facts(facts)
    return 0


def figures(config: Config) -> dict:
    """What follows from a config: shapes, parameters, bytes.

    >>> figures(SIZES["0.5B"].config())["kv_cache_bytes_per_token"]
    {'f32': 24576, 'bf16': 12288, 'int8': 6528}
    """
    counts = count_parameters(config)
    chunk = config.dual_chunk_attention_config
    shapes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling and written_scaling(config.rope_scaling),
        "dual_chunk_attention_config": chunk and dict(chunk._asdict()),
        "context": config.context,
        "sliding_window": config.sliding_window,
    }
    if config.num_experts:
        moe = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
        shapes |= {name: getattr(config, name) for name in moe}
    return {
        "shape": shapes,
        "parameters": counts,
        "stored_as": config.quantization_config.format if config.quantization_config else config.torch_dtype,
        "weight_bytes": {name: weight_bytes(config, name) for name in FORMATS},
        "kv_cache_bytes_per_token": {kv: kv_bytes_per_token(config, kv) for kv in KV_FORMATS},
    }


def habits(folder: Path, config: Config) -> dict:
    """How a checkpoint wants to be sampled and stopped."""
    generation = read_generation_config(folder)
    eos = sorted({*config.eos_token_id, *generation.eos_token_id})
    return {"sampling": dataclasses.asdict(generation.sampling), "stop_ids": eos}


def list_sizes(arguments: argparse.Namespace) -> int:
    rows = {
        name: {"model": size.hub_id(arguments.base), **figures(size.config(arguments.base))}
        for name, size in SIZES.items()
    }
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("--size", no_wrap=True)
    for heading in ("total", "body", "active", "layers", "heads", *FORMATS, "KV"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        shape = row["shape"]
        table.add_row(
            name,
            *(f"{row['parameters'][key] / 1e9:.2f}" for key in ("total", "non_embedding", "active")),
            str(shape["num_hidden_layers"]),
            f"{shape['num_attention_heads']}:{shape['num_key_value_heads']}",
            *(f"{size / 1e9:.1f}" for size in row["weight_bytes"].values()),
            f"{row['kv_cache_bytes_per_token']['bf16'] // 1024}",
        )
    console = Console()
    console.print(table)
    for line in (
        "total, body (without the tables), active (per token): 10^9 parameters",
        "heads: query:KV   f32 to int4: GB of weights   KV: KiB of cache a token, bf16",
        "--size NAME tells more about one, and what public pages get wrong",
    ):
        console.print(line, style="dim", no_wrap=True, highlight=False)
    return 0


def show_facts(facts: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts.items():
        if isinstance(value, dict):
            prefix = "" if name in ("shape", "sampling") else f"{name}."
            for key, item in value.items():
                table.add_row(prefix + key, readable(item))
        elif name == "public pages":
            for item in value:
                table.add_row(name, item)
        else:
            table.add_row(name, readable(value))
    Console(markup=False).print(table)


def readable(value) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
