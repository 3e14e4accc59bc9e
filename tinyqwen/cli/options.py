"""Flags that several verbs share, and what they mean: which model, how to sample, what to print."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path

import backends
from tinyqwen import files
from tinyqwen.checkpoint.hub import resolve_model
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.context import chunks, factor, stretched
from tinyqwen.errors import UsageError
from tinyqwen.files import size_in_words
from tinyqwen.formats import FORMATS, QUANTISED
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.runtime import Runtime, load
from tinyqwen.sampling import Sampling, with_flags
from tinyqwen.sizes import size_named
from tinyqwen.tiny import FOLDER

EMBEDDED = "embedded model, 1.9 million parameters; the real one: --size 0.5B (1 GB from the Hugging Face hub, once)"


def add_model_arguments(parser: argparse.ArgumentParser, otherwise: str = "the embedded model") -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "-m", metavar="FOLDER|ID",
        help=f"a model folder, or a name on the Hugging Face hub; without this and --size: {otherwise}",
    )  # fmt: skip
    group.add_argument("--size", metavar="SIZE", help="a published size: 0.5B, 1.5B, 7B, ..., 2.5-0.5B, ... (see info)")
    group.add_argument("--base", action="store_true", help="with --size: the base model instead of the instruct model")
    group.add_argument("--revision", help="a branch, tag or commit on the hub")
    group.add_argument("--offline", action="store_true", help="use what is downloaded already, ask no network")


GPU = "cuda", "cupy", "auto"


def add_backend_arguments(parser, *others: str, default: str = "cpu") -> None:
    """Where to run, and with how many threads. others: names besides those of the processor, such as GPU."""

    def named(word: str) -> str:
        if word in GPU and word not in others:
            raise UsageError(f"--backend {word}: this runs on the processor only; take --backend {default}")
        return word

    parser.add_argument(
        "--backend", default=default, type=named, choices=[*backends.NAMES, "numba", *others],
        help="numpy: the readable definitions themselves; cpu: compiled kernels"
        + ("; cuda: an NVIDIA GPU; auto: cuda where it can be used, else cpu" if "cuda" in others else "")
        + f" (default: {default})",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of the cpu backend (default: the cores it may use)"
    )


def add_format_arguments(parser) -> None:
    """How weights are kept; `format_of` gives them to whoever loads."""
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", *FORMATS],
        help="the weights' format; int8 and int4 are made while loading and kept for the next start "
        "(default: auto, as stored; f32 on numpy)",
    )  # fmt: skip
    parser.add_argument("--tables", choices=QUANTISED, help="embedding and head of an int4 model (default: int8)")
    parser.add_argument("--no-cache", action="store_true", help="do not keep what was quantised for the next start")
    parser.add_argument(
        "--mmap", action=argparse.BooleanOptionalAction, default=None,
        help="leave weights in their mapped file: starts sooner, decodes slower (default: if a copy would fill memory)",
    )  # fmt: skip
    parser.add_argument(
        "--no-sketch", action="store_true",
        help="read the whole head for every token: less memory, the same tokens a little later",
    )  # fmt: skip


def add_cache_arguments(parser) -> None:
    """How keys and values are kept, and of how many tokens."""
    parser.add_argument(
        "--kv-dtype", default="auto", choices=["auto", *KV_FORMATS],
        help="the format of the KV cache (default: auto, bf16; f32 where the weights are, and on numpy)",
    )  # fmt: skip
    parser.add_argument(
        "--context", "-c", type=int, metavar="N",
        help="at most N tokens, prompt and answer together; refused if they cannot fit in memory (default: all that "
        "the model can look at)",
    )  # fmt: skip


def add_context_arguments(parser) -> None:
    """How a model is run at texts longer than it was trained on; `tinyqwen.context.stretched` does it."""
    parser.add_argument(
        "--yarn", type=factor, metavar="FACTOR",
        help="texts of up to FACTOR times the trained length (Qwen2: 4); short texts get a little worse",
    )  # fmt: skip
    parser.add_argument(
        "--dca", type=chunks, metavar="CHUNK,LOCAL",
        help="Dual Chunk Attention: no distance beyond CHUNK tokens, and those up to LOCAL are true (Qwen2: "
        "32768,1024); CHUNK,LOCAL,TRAINED adds YaRN's temperature for texts longer than TRAINED",
    )  # fmt: skip


def add_ignore_argument(parser) -> None:
    parser.add_argument(
        "--ignore-config", action="append", default=[], metavar="KEY",
        help="accept this key of config.json although its effect is unknown (repeatable)",
    )  # fmt: skip


def format_of(arguments: argparse.Namespace) -> dict:
    """The format flags, as `tinyqwen.runtime.load` takes them."""
    if arguments.tables and arguments.dtype != "int4":
        raise UsageError(f"--tables {arguments.tables} is about --dtype int4, and this is --dtype {arguments.dtype}")
    return {
        "dtype": arguments.dtype,
        "tables": arguments.tables,
        "keep": not arguments.no_cache,
        "mapped": arguments.mmap,
        "sketched": not arguments.no_sketch,
    }


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that `load_named` asks: where to run, in what formats, how far to look."""
    group = parser.add_argument_group("running")
    add_backend_arguments(group, *GPU, default="auto")
    group.add_argument(
        "--gpu-layers", type=int, metavar="N",
        help="the first N layers on the GPU, the others on the processor, for models that do not fit (default: all)",
    )  # fmt: skip
    add_format_arguments(group)
    add_cache_arguments(group)
    add_context_arguments(group)
    add_ignore_argument(group)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_loading_arguments(parser)
    group = parser.add_argument_group("sampling (defaults: the model's generation_config.json)")
    group.add_argument("--greedy", action="store_true", help="always take the likeliest token; as --temperature 0")
    group.add_argument("--temperature", "--temp", type=float, metavar="X", help="below 1 sharpens, above 1 flattens")
    group.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest; 0: all")
    group.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that make up P")
    group.add_argument("--min-p", type=float, metavar="P", help="drop what is less likely than P times the likeliest")
    group.add_argument(
        "--repetition-penalty", "--repeat-penalty", type=float, metavar="X", help="above 1: avoid what was said"
    )
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer; default: random, and shown")
    group.add_argument("--max-tokens", "-n", type=int, metavar="N", help="stop after N tokens (default: context's end)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before TEXT (repeatable)")

    group = parser.add_argument_group("output")
    group.add_argument("--stats", action=argparse.BooleanOptionalAction, default=None, help="speeds, on standard error")
    group.add_argument("--quiet", "-q", action="store_true", help="no header, statistics or progress")


def model_folder(arguments: argparse.Namespace, **what) -> Path:
    """The folder of the model that the flags name, downloaded if need be; if they name none, of the embedded model.

    what   as of `checkpoint.resolve_model`
    """
    if is_embedded(arguments):
        return embedded_model(arguments)
    return resolve_model(
        arguments.model, arguments.size, arguments.base,
        revision=arguments.revision, offline=arguments.offline, progress=not getattr(arguments, "quiet", False), **what,
    )  # fmt: skip


def config_of(arguments: argparse.Namespace) -> Config:
    """The config of the model that the flags name, run as they say; of a published size nothing is read."""
    if arguments.size and not arguments.model:
        return stretched(size_named(arguments.size).config(arguments.base), arguments.yarn, arguments.dca)
    return config_in(model_folder(arguments, weights=False), arguments)


def config_in(folder: Path, arguments: argparse.Namespace) -> Config:
    """The config of the model in that folder, run as the flags say."""
    config = read_config(folder / "config.json", tuple(arguments.ignore_config))
    return stretched(config, arguments.yarn, arguments.dca)


def is_embedded(arguments: argparse.Namespace) -> bool:
    """Whether no model is named, so that the embedded one is meant."""
    return not arguments.model and not arguments.size


def embedded_model(arguments: argparse.Namespace) -> Path:
    """The folder of the model that comes with tinyqwen, and a line that says so."""
    if arguments.base or arguments.revision:
        raise UsageError("--base and --revision need to know of which model: --size 0.5B, --model FOLDER|ID")
    if not getattr(arguments, "quiet", False):
        print(EMBEDDED, file=sys.stderr)
    return FOLDER


def load_model(arguments: argparse.Namespace, *, together: bool) -> Runtime:
    """The model that the flags name, once what they say of sampling is sound, too."""
    check_flags(arguments)
    return load_named(arguments, together=together)


def load_named(arguments: argparse.Namespace, *, together: bool = False) -> Runtime:
    """The model that the flags name, with a progress bar when loading takes long. `together`: as of `runtime.load`."""
    backend = chosen(arguments.backend, arguments.threads, arguments.quiet)
    folder = model_folder(arguments)
    with loading_bar(quiet=arguments.quiet) as (update, compiling):
        return load(
            folder,
            backend=backend,
            threads=arguments.threads,
            **format_of(arguments),
            kv_dtype=arguments.kv_dtype,
            context=arguments.context,
            yarn=arguments.yarn,
            dca=arguments.dca,
            ignore_config=tuple(arguments.ignore_config),
            gpu_layers=getattr(arguments, "gpu_layers", None),
            together=together,
            progress=update,
            compiling=compiling,
        )


def chosen(backend: str, threads: int | None, quiet: bool) -> str:
    """What auto means here; whoever has a GPU that cannot be used is told why. Threads are wishes for the processor."""
    if backend != "auto":
        return backend
    backend, why = ("cpu", None) if threads is not None else backends.choose()
    if why and not quiet:
        print(f"tinyqwen: on the processor, not the GPU: {why}", file=sys.stderr)
    return backend


def check_flags(arguments: argparse.Namespace) -> None:
    """Complain about what is out of range before anything is loaded."""
    sampling_of(arguments, Sampling())
    format_of(arguments)
    if arguments.greedy and arguments.temperature:
        raise UsageError(f"--greedy and --temperature {arguments.temperature:g} exclude each other")
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise UsageError(f"--max-tokens must be at least 1, is {arguments.max_tokens}")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UsageError(f"--seed must be from 0 to 2^63 - 1, is {arguments.seed}")
    if "" in arguments.stop:
        raise UsageError("--stop needs a text")


def sampling_of(arguments: argparse.Namespace, default: Sampling) -> Sampling:
    """The model's sampling with the flags' wishes."""
    return with_flags(
        default,
        temperature=0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
    )


def seed_of(arguments: argparse.Namespace) -> int:
    """The seed that was asked for, or a random one, small enough to be typed again."""
    return secrets.randbelow(2**31) if arguments.seed is None else arguments.seed


def read_text(source: str, what: str) -> str:
    """The text itself, or that of a file (`@FILE`), or of standard input (`-`)."""
    if source == "-":
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if source.startswith("@"):
        return files.read_text(source[1:], what)
    return source


@contextmanager
def progress_bar(label: str, *, quiet: bool):
    """Gives a function (done, total) that draws a bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting_bar(label: str, total: int, *, quiet: bool):
    """Gives a function that counts one more, drawn as a bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def loading_bar(*, quiet: bool):
    """Gives two functions, one bar on standard error, if that is a terminal: (bytes done, bytes in all) of weights that
    are read, and (name) of a kernel before it is compiled."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console, count = Console(stderr=True), 0
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[words]}")
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("loading", total=None, words="")

        def reading(done: int, total: int) -> None:
            words = f"{size_in_words(done)} of {size_in_words(total)}"
            progress.update(task, description="loading", completed=done, total=total, words=words)

        def compiling(name: str) -> None:
            nonlocal count
            count += 1
            progress.reset(task, description="compiling", words=f"{count} kernels (once): {name}")

        yield reading, compiling
