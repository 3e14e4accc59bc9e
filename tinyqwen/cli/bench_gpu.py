"""`bench --backend cuda`: what this GPU does, beside what it could."""

from __future__ import annotations

import argparse
import datetime

import backends
from tinyqwen.bench import gpu
from tinyqwen.cli.bench_common import check_outputs, numbers, progress, save, words
from tinyqwen.errors import UsageError
from tinyqwen.formats import FORMATS
from tinyqwen.sizes import SIZES


def run_on_gpu(arguments: argparse.Namespace) -> int:
    """Each size and format by itself: what else a GPU's owner wants to know, `tinyqwen.bench.gpu_check` measures."""
    if arguments.model or arguments.against:
        raise UsageError("--backend cuda measures sizes with random weights: give --size; for peers on the GPU, run "
                         "python -m tinyqwen.bench.gpu_check")  # fmt: skip
    names, dtypes = words(arguments.size or "0.5B,1.5B,7B"), words(arguments.dtype or "bf16")
    for flag, given, known in (("--size", names, SIZES), ("--dtype", dtypes, FORMATS)):
        if strangers := [word for word in given if word not in known]:
            raise UsageError(f"{flag} does not know {strangers[0]!r}; there are {', '.join(known)}")
    depths, prompts = tuple(numbers("--decode", arguments.decode, 0)), tuple(numbers("--prefill", arguments.prefill, 1))
    try:
        backend = backends.get("cuda")
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_outputs(arguments)
    with progress(arguments.quiet) as report:
        report("what this GPU can do at best")
        limits, rows = gpu.ceilings(backend), []
        for name in names:
            for dtype in dtypes:
                rows += gpu.measure(backend, name, SIZES[name].config(), dtype, limits, depths, prompts,
                                    arguments.tokens, report)  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).isoformat()
    found = {"date": now, "limits": limits._asdict(), "rows": rows}
    save(arguments, found, f"gpu-{now[:10]}")
    if arguments.json != "-":
        show_gpu(limits, rows)
    return 0


def show_gpu(limits, rows: list[dict]) -> None:
    print(f"memory reads at {limits.read / 1e9:,.0f} GB/s; products reach {limits.peaks['bf16'] / 1e12:,.0f} TFLOP/s")
    for row in rows:
        said = row.get("why") or f"{row['tokens_s']:>10,.0f} tokens/s  {row['share']:>6.1%} of the ceiling"
        print(f"{row['model']:>9} {row['format']:>5}  {row['what']:<20} {said}")
