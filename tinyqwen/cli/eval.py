"""How good is a model? It is asked, and what it says is judged.

The home tasks are what the embedded model was made for, with problems that its training has not seen. Everything else
is a task of lm-evaluation-harness (pip install 'tinyqwen[eval]'): MMLU, GSM8K, HumanEval, and whatever it knows.

  tinyqwen eval                                                  the home tasks
  tinyqwen eval --tasks home:add,home:copy --limit 50            two of them
  tinyqwen eval --items questions.jsonl                          your own; tinyqwen/evaluate/items.py shows a line
  tinyqwen eval --size 0.5B --tasks mmlu --limit 20              likelihoods: the base model as it is
  tinyqwen eval --size 0.5B --tasks gsm8k --chat --limit 20      texts, within the chat template
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tinyqwen import __version__
from tinyqwen.cli import options
from tinyqwen.errors import UsageError
from tinyqwen.evaluate.home import COUNT, NAMES, home_items
from tinyqwen.evaluate.items import read_items
from tinyqwen.evaluate.replies import TOGETHER
from tinyqwen.evaluate.run_harness import Tasks, figures
from tinyqwen.evaluate.score import LIMIT, answers, scores
from tinyqwen.files import check_target, write
from tinyqwen.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--tasks", metavar="NAME,...",
        help=f"home (default), home:TASK of {', '.join(NAMES)}; or names of lm-evaluation-harness, tinyqwen among "
        "them: the home tasks once more, to compare",
    )  # fmt: skip
    group.add_argument("--items", metavar="FILE", help="questions of your own instead, one a line, as JSON")
    group.add_argument("--limit", type=int, metavar="N", help=f"items of a task (home: {COUNT}; else: all)")
    group.add_argument("--together", type=int, default=TOGETHER, metavar="N", help=f"at a time (default {TOGETHER})")
    group = parser.add_argument_group("for lm-evaluation-harness")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question (default: the task's)")
    group.add_argument("--chat", action="store_true", help="frame questions with the chat template, examples as turns")
    group.add_argument("--system", metavar="TEXT", help="a system message")
    group.add_argument("--include", metavar="FOLDER", type=Path, help="YAML of tasks of your own")
    group.add_argument("--seed", type=int, default=1234, metavar="N", help="of the choice of examples (default 1234)")
    group.add_argument("--run-code", action="store_true", help="let tasks run the programs that the model writes")
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write everything as JSON (- for standard output)")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_model_arguments(parser)
    options.add_loading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        check_target(arguments.json)
    for name in ("limit", "together"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UsageError(f"--{name} must be at least 1, is {getattr(arguments, name)}")
    if arguments.items and arguments.tasks:
        raise UsageError("--items and --tasks exclude each other: questions of your own, or those of a task")
    names = [name.strip() for name in (arguments.tasks or "home").split(",")]
    if arguments.items or all(is_home(name) for name in names):
        refuse_harness_flags(arguments)
        facts = at_home(arguments, names)
    elif not any(is_home(name) for name in names):
        facts = by_harness(arguments, names)
    else:
        raise UsageError("home tasks and those of lm-evaluation-harness are asked apart: one command for each")
    if arguments.json:
        write(json.dumps(facts, ensure_ascii=False, indent=1, default=str) + "\n", arguments.json)
    return 0


def refuse_harness_flags(arguments: argparse.Namespace) -> None:
    """UsageError for a flag that means nothing to home tasks and items: those are chats already."""
    for name in ("num_fewshot", "chat", "system", "include", "run_code"):
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} is for tasks of lm-evaluation-harness, such as --tasks mmlu")


def is_home(name: str) -> bool:
    return name == "home" or name.startswith("home:")


def at_home(arguments: argparse.Namespace, names: list[str]) -> dict:
    if arguments.items:
        items = list(read_items(arguments.items))
        if not items:
            raise UsageError(f"{arguments.items}: has no items")
    else:
        items = home_items(home_names(names), arguments.limit or COUNT)
    runtime = options.load_named(arguments, together=arguments.together > 1)
    started = time.perf_counter()
    with options.counting_bar("asking", len(items), quiet=arguments.quiet) as asked:
        found = answers(runtime, items, together=arguments.together, watch=asked)
    seconds, results = time.perf_counter() - started, scores(items, found)
    rows = [
        (score.task, f"{score.right / score.asked:.1%}", " to ".join(f"{bound:.1%}" for bound in score.interval),
         f"{score.ended / score.asked:.1%}", score.asked)
        for score in results
    ]  # fmt: skip
    show(arguments, "task  right  95 % interval  ended by itself  asked", rows)
    said = [
        {"task": item.task, "messages": item.messages, "answer": item.answer, "said": reply.text, "ended": reply.ended,
         "right": item.accepts(reply.text)}
        for item, reply in zip(items, found)
    ]  # fmt: skip
    scored = [score.as_dict() for score in results]
    return {**about(runtime), "limit": LIMIT, "seconds": seconds, "tasks": scored, "items": said}


def home_names(names: list[str]) -> tuple[str, ...]:
    """
    >>> home_names(["home:copy", "home:add"]), home_names(["home"]) == NAMES
    (('copy', 'add'), True)
    """
    if "home" in names:
        return NAMES
    chosen = tuple(name.removeprefix("home:") for name in names)
    if unknown := [name for name in chosen if name not in NAMES]:
        raise UsageError(f"home:{unknown[0]} is no home task; there are {', '.join(NAMES)}")
    return chosen


def by_harness(arguments: argparse.Namespace, names: list[str]) -> dict:
    quiet = arguments.quiet or not sys.stderr.isatty()
    tasks = Tasks(names, include=arguments.include, code=arguments.run_code, quiet=quiet)
    runtime = options.load_named(arguments, together=arguments.together > 1)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "fewshot_random_seed"), arguments.seed)
    results = tasks.run(
        runtime, together=arguments.together, chat=arguments.chat, limit=arguments.limit,
        num_fewshot=arguments.num_fewshot, system_instruction=arguments.system, **seeds,
    )  # fmt: skip
    rows = [
        (one.task, one.metric, one.filter, f"{one.value:.4g}", "" if one.error is None else f"± {one.error:.2g}",
         one.asked or "")
        for one in figures(results)
    ]  # fmt: skip
    show(arguments, "task  metric  filter  value  error  asked", rows)
    return {**about(runtime), **results}


def about(runtime: Runtime) -> dict:
    return {
        "model": runtime.checkpoint.folder.name, "version": __version__, "backend": runtime.backend.name,
        "dtype": runtime.checkpoint.format, "kv": runtime.kv_format, "context": runtime.context,
    }  # fmt: skip


def show(arguments: argparse.Namespace, heads: str, rows: list[tuple]) -> None:
    """A table on standard output, unless that is for JSON."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if arguments.json == "-":
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for n, head in enumerate(heads.split("  ")):
        table.add_column(head, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False, markup=False).print(table)
