"""Does a model find one fact in a long text? Asked at chosen lengths and depths, of one model run in several ways.

A passkey, a secret word among sentences, or keys without language are hidden; what the model says is compared, and how
likely it found the answer is measured. All ways read the same texts. A length holds prompt and answer; lengths beyond
what a way can look at are asked all the same and marked, because that is where ways differ. Ctrl-C keeps what there is.

  tinyqwen needle --size 0.5B --lengths 4k,16k,32k
  tinyqwen needle --size 0.5B --with plain --with yarn=4 --with dca=32768,1024,32768 --lengths 64k --trials 3
  tinyqwen needle -m FOLDER --task keys --lengths 64,256 --show probability --json found.json --svg found.svg
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import backends
from tinyqwen import __version__
from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.context import LONGEST, check_memory
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.files import check_target, write
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.needle import TASKS, Key, Question, Reader, alphabet_of, frame_of, in_words, keys, wilson
from tinyqwen.placing import free_bytes
from tinyqwen.prepare import prepare
from tinyqwen.runtime import Runtime, cache_format, load, loaded_format
from tinyqwen.sampling import Sampling
from tinyqwen.trace.export import write_svg
from tinyqwen.ways import as_config, parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument("--task", default="passkey", choices=TASKS, help="what is hidden (default passkey)")
    group.add_argument(
        "--lengths", "-l", default="512,1k,2k,4k", metavar="N,...",
        help="tokens of prompt and answer together; 4k is 4096 (default 512,1k,2k,4k)",
    )  # fmt: skip
    group.add_argument(
        "--depths", default="0,25,50,75,100", metavar="%,...", help="where needles lie (default 0,25,50,75,100)"
    )
    group.add_argument("--trials", type=int, default=1, metavar="N", help="texts of each kind (default 1)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the first text; then N+1, ... (default 0)")
    group.add_argument(
        "--with", dest="ways", action="append", metavar="WAY",
        help="a way to run the model: plain, yarn=4, dca=CHUNK,LOCAL, dca=CHUNK,LOCAL,TRAINED (with YaRN's "
        "temperature), window=W (repeatable; default plain, as config.json says)",
    )  # fmt: skip
    group.add_argument("--raw", action="store_true", help="no chat template: the text as it stands")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--show", default="accuracy", choices=("accuracy", "probability", "rank"),
        help="the map's figure: answers found, their probability a token, or their worst token's rank (median)",
    )  # fmt: skip
    group.add_argument("--json", metavar="FILE", help="write everything as JSON (- for standard output)")
    group.add_argument("--svg", metavar="FILE", help="write the map as a picture")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)
    group = parser.add_argument_group("running")
    options.add_backend_arguments(group, *options.GPU, default="auto")
    options.add_format_arguments(group)
    group.add_argument(
        "--kv-dtype", default="auto", choices=["auto", *KV_FORMATS], help="the KV cache's format (default auto)"
    )
    options.add_ignore_argument(group)


def run(arguments: argparse.Namespace) -> int:
    from tinyqwen.cli.needle_map import progress  # and rich with it, which other verbs need not wait for

    lengths, depths, ways = check_flags(arguments)
    arguments.backend = options.chosen(arguments.backend, arguments.threads, arguments.quiet)
    folder = options.model_folder(arguments)
    if (folder / "config.json").is_file():
        check_room(arguments, read_config(folder / "config.json", tuple(arguments.ignore_config)), max(lengths), ways)
    quiet = arguments.quiet
    with options.loading_bar(quiet=quiet) as (update, compiling):
        runtime = load(
            folder, backend=arguments.backend, threads=arguments.threads, **options.format_of(arguments),
            kv_dtype=arguments.kv_dtype, ignore_config=tuple(arguments.ignore_config), progress=update,
            together=False, compiling=compiling,
        )  # fmt: skip
        runtimes = {way: run_as(runtime, way, max(lengths), compiling) for way in ways}
    seeds = range(arguments.seed, arguments.seed + arguments.trials)
    texts = [[(seed, length, depth) for depth in reversed(depths)] for length in lengths for seed in seeds]
    make = maker(runtime, arguments)
    for places in texts[: arguments.trials]:
        for place in places:
            make(place)  # the shortest ones: a length without room is refused now, and not after an hour
    trials: dict[tuple[str, int, float], list[dict]] = {}
    stopped: BaseException | None = None
    started = time.perf_counter()
    with progress(runtime.config, len(ways), texts, quiet=quiet) as asked:
        try:
            for way, (seed, length, depth), trial in answers(runtimes, texts, make, asked):
                trials.setdefault((way, length, depth), []).append({"seed": seed, **trial})
        except (KeyboardInterrupt, MemoryError, TinyqwenError) as error:
            stopped = error  # what was measured is kept and shown
    facts = {
        "model": folder.name, "version": __version__, "backend": runtime.backend.name,
        "dtype": runtime.checkpoint.format, "kv": runtime.kv_format, "task": arguments.task,
        "template": not (arguments.raw or runtime.is_base or arguments.task == "keys"),
        "seed": arguments.seed, "trials": arguments.trials, "lengths": lengths, "depths": depths,
        "complete": stopped is None, "seconds": time.perf_counter() - started,
        "ways": [summary(way, runtimes[way].config, trials) for way in ways],
    }  # fmt: skip
    report(facts, arguments)
    if isinstance(stopped, KeyboardInterrupt):
        done, asked_for = sum(map(len, trials.values())), len(ways) * len(texts) * len(depths)
        print(f"interrupted: {done} of {asked_for} questions were asked; they are kept", file=sys.stderr)
        return 130
    if stopped is not None:
        raise stopped
    return 0


# ---- what to ask --------------------------------------------------------------------------------------------------


def check_flags(arguments: argparse.Namespace) -> tuple[list[int], list[float], list[str]]:
    """Lengths, depths and ways; UsageError before anything takes time."""
    lengths = sorted({length_of(word) for word in arguments.lengths.split(",")})
    try:
        depths = sorted({float(word.strip().removesuffix("%")) / 100 for word in arguments.depths.split(",")})
    except ValueError:
        depths = [math.nan]
    if not all(0 <= depth <= 1 for depth in depths):
        raise UsageError(f"--depths takes numbers from 0 to 100 with commas between, not {arguments.depths!r}")
    if not 1 <= arguments.trials <= 1000:
        raise UsageError(f"--trials must be from 1 to 1000, is {arguments.trials}")
    if not 0 <= arguments.seed < 2**63 - 1000:
        raise UsageError(f"--seed must be from 0 to 2^63 - 1001, is {arguments.seed}")
    ways = list(dict.fromkeys(arguments.ways or ["plain"]))
    for way in ways:
        parse(way)  # whether this model can be run so, its config tells
    for target in filter(None, (arguments.json, arguments.svg)):
        check_target(target)
    if arguments.json == "-" and arguments.svg == "-":
        raise UsageError("--json and --svg cannot both be written to standard output")
    return lengths, depths, ways


def length_of(word: str) -> int:
    """
    >>> length_of("4k"), length_of(" 500")
    (4096, 500)
    """
    word = word.strip().lower()
    try:
        length = int(word.removesuffix("k")) * (1024 if word.endswith("k") else 1)
    except ValueError:
        length = 0
    if not 1 <= length <= LONGEST:
        raise UsageError(f"--lengths takes whole numbers from 1 to {LONGEST} with commas between, not {word!r}")
    return length


def check_room(arguments: argparse.Namespace, config: Config, longest: int, ways: list[str]) -> None:
    """DoesNotFitError if the longest text cannot be held, with what can; UsageError for a way that is none."""
    try:
        computes = backends.get(arguments.backend, threads=arguments.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    format = loaded_format(config, arguments.dtype, computes.name)
    for way in ways:
        check_memory(
            as_way(way, config), longest, format=format, kv=cache_format(arguments.kv_dtype, computes, format),
            tables=arguments.tables or "int8", kernels="attention" in computes.bodies, flag="--lengths",
            room=free_bytes(computes),
        )  # fmt: skip


def as_way(way: str, config: Config) -> Config:
    try:
        return as_config(way, config)
    except UsageError as error:
        raise UsageError(f"--with {error}") from None


def run_as(runtime: Runtime, way: str, longest: int, compiling: Callable[[str], None]) -> Runtime:
    """The same weights, run that way, at texts as long as asked: to fail beyond its context is an answer, too."""
    checkpoint = replace(runtime.checkpoint, config=as_way(way, runtime.config))
    runtime = replace(runtime, checkpoint=checkpoint, context=max(longest, checkpoint.config.context))
    prepare(
        runtime.backend, runtime.config, checkpoint.weights, Sampling(), compiling=compiling,
        kv_format=runtime.kv_format, packing=checkpoint.packing, sketching=checkpoint.sketching, together=False,
    )  # fmt: skip
    return runtime


def maker(runtime: Runtime, arguments: argparse.Namespace) -> Callable[[Key], Question]:
    """What makes the question of a seed, length and depth."""
    if arguments.task == "keys":
        alphabet = alphabet_of(runtime.tokenizer)
        return lambda place: keys(*place, alphabet)
    frame = frame_of(runtime, raw=arguments.raw)
    return lambda place: in_words(arguments.task, runtime.tokenizer, frame, *place)


def answers(runtimes: dict[str, Runtime], texts: list[list[Key]], make: Callable[[Key], Question], asked):
    """Yields way, place and what was found, question by question. `asked` watches: see `progress`.

    Short texts come first, and the deepest needle of a text: its next question has all before its own needle in common
    with the one before, and that is not read again.
    """
    for places in texts:
        questions = [make(place) for place in places]
        for way, runtime in runtimes.items():
            reader = Reader(runtime)
            for place, question in zip(places, questions):
                started = time.perf_counter()
                found = reader.ask(question, lambda: asked(way, place, reader.cache.length))  # noqa: B023
                asked(way, place, None)
                yield way, place, {
                    **found._asdict(), "said": runtime.tokenizer.decode(found.said) if question.word else found.said,
                    "answer": question.word or question.answer, "answer_tokens": len(question.answer),
                    "needle_at": question.needle[0], "prompt_tokens": len(question.ids),
                    "seconds": time.perf_counter() - started,
                }  # fmt: skip


# ---- what was found -----------------------------------------------------------------------------------------------


def summary(way: str, config: Config, trials: dict[tuple[str, int, float], list[dict]]) -> dict[str, Any]:
    """All cells of a way, and all of them together."""
    cells = [
        {"length": length, "depth": depth, **rates(found), "trials": found}
        for (whose, length, depth), found in sorted(trials.items())
        if whose == way
    ]
    return {
        "way": way,
        "context": config.context,
        **rates([trial for cell in cells for trial in cell["trials"]]),
        "cells": cells,
    }


def rates(found: list[dict]) -> dict[str, Any]:
    """Trials in numbers: how many found it, between which rates the true one lies, probability a token, median rank."""
    if not found:
        return {"asked": 0}
    hits = sum(trial["hit"] for trial in found)
    logprob = sum(trial["logprob"] for trial in found) / sum(trial["answer_tokens"] for trial in found)
    return {
        "asked": len(found), "hits": hits, "accuracy": hits / len(found), "wilson": wilson(hits, len(found)),
        "probability": math.exp(logprob), "rank": statistics.median(trial["rank"] for trial in found),
    }  # fmt: skip


def report(facts: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The map on standard output, unless that is for a file; and the files."""
    from rich.console import Console

    from tinyqwen.cli.needle_map import picture_console, print_map

    if arguments.json:
        write(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", arguments.json)
    if arguments.svg:
        picture = picture_console(facts)
        print_map(picture, facts, arguments.show)
        write_svg(picture, f"needle · {facts['model']} · {facts['task']}: {arguments.show}", arguments.svg)
    if "-" not in (arguments.json, arguments.svg):
        print_map(Console(highlight=False, markup=False), facts, arguments.show)
