"""Rejection sampling: let a model answer, keep what is right. So a model makes data that the next one learns from.

  tinyqwen train sample --model FOLDER --data prompts.jsonl OUT

writes OUT/chats.jsonl, each prompt with its best answer (for `train sft`), and OUT/pairs.jsonl, each prompt of which
some answers are better than others with the best and the worst (for `train dpo`). What a good answer is, the verifiers
of the data say (`tinyqwen.train.verifiers`), or a reward model. The same command continues a run that was interrupted:
its files become those of a run that was not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyqwen.cli import options
from tinyqwen.cli.train_kinds import Source, weights_of
from tinyqwen.cli.train_run import open_source
from tinyqwen.errors import UsageError
from tinyqwen.memory import keep_freed
from tinyqwen.train import rollouts, sampled
from tinyqwen.weights import tree

SUMMARY = "rejection sampling: let it answer, and write chats and pairs"
AT_ONCE = 32  # prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write chats.jsonl and pairs.jsonl to")
    parser.add_argument("--data", metavar="FILE", type=Path, action="append", required=True, help="(repeatable)")
    parser.add_argument("--reward", metavar="FOLDER", help="a model made by `train reward`, in place of verifiers")
    parser.add_argument("--group", type=int, default=8, metavar="N", help="answers to each prompt (default: 8)")
    parser.add_argument("--answer", type=int, default=256, metavar="N", help="tokens of an answer (default: 256)")
    parser.add_argument("--length", type=int, default=2048, metavar="N", help="longer prompts are left out")
    parser.add_argument("--at-least", type=float, default=1.0, metavar="X", help="what a chat must earn (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default: 0)")
    options.add_ignore_argument(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_backend_arguments(parser)
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    if min(arguments.group, arguments.answer, arguments.length) < 1:
        raise UsageError("--group, --answer and --length must be at least 1")
    source, out = open_source(arguments), arguments.out
    data = rollouts.read(arguments.data, source.format(), arguments.length, judged=source.reward is None)
    state, tasks = sampled.begin(out, settings_of(arguments, source, data)), data.tasks
    keep_freed()
    policy, judge = source.policy(tree(weights_of(source.folder, source.ignored)[1])), source.judge()
    console = Console(stderr=True)
    shown = console.is_terminal and not arguments.quiet
    begins = range(state["prompts"], len(tasks), AT_ONCE)
    for begin in track(begins, "sampling", console=console, disable=not shown, transient=True):
        some = tasks[begin : begin + AT_ONCE]
        asked = [task for task in some for _ in range(arguments.group)]
        given = rollouts.answers(policy, asked, (arguments.seed, begin), tokens=arguments.answer)
        reward_PG = judge(asked, given).reshape(-1, arguments.group)
        lines = rollouts.chosen_lines(some, given, reward_PG, arguments.at_least)
        state = sampled.add(out, state, len(some), lines)
    if not arguments.quiet:
        for name, known in state["files"].items():
            print(f"{out / name}: {known['lines']:,} of {len(tasks):,} prompts")
    return 0


def settings_of(arguments: argparse.Namespace, source: Source, data: rollouts.Tasks) -> dict:
    """All that decides what is written."""
    numbers = {name: getattr(arguments, name) for name in ("group", "answer", "length", "at_least", "seed")}
    folders = {"model": str(source.folder.resolve()), "reward": source.reward}
    return {**folders, "backend": source.backend.name, **numbers, "data": data.digest}
