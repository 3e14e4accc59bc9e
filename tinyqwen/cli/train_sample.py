"""Rejection sampling: let a model answer, keep what is right. So a model makes data that the next one learns from.

  tinyqwen train sample --model FOLDER --data prompts.jsonl OUT

writes OUT/chats.jsonl, each prompt with its best answer (for `train sft`), and OUT/pairs.jsonl, each prompt of which
some answers are better than others with the best and the worst (for `train dpo`). What a good answer is, the verifiers
of the data say (`tinyqwen.train.verifiers`), or a reward model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tinyqwen.checkpoint.save import clear_errors
from tinyqwen.cli import options
from tinyqwen.errors import UsageError
from tinyqwen.memory import keep_freed
from tinyqwen.train import rollouts
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
    parser.add_argument(
        "--ignore-config", action="append", default=[], metavar="KEY", help="accept this key (repeatable)"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    options.add_backend_arguments(parser)
    options.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    from tinyqwen.cli.train_kinds import weights_of
    from tinyqwen.cli.train_run import open_source

    if min(arguments.group, arguments.answer, arguments.length) < 1:
        raise UsageError("--group, --answer and --length must be at least 1")
    source, out = open_source(arguments), arguments.out
    tasks = rollouts.read(arguments.data, source.format(), arguments.length, judged=source.reward is None).tasks
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: exists and is not empty; name another folder")
    keep_freed()
    policy, judge = source.policy(tree(weights_of(source.folder, source.ignored)[1])), source.judge()
    counts = {"chats.jsonl": 0, "pairs.jsonl": 0}
    console = Console(stderr=True)
    shown = {"console": console, "disable": arguments.quiet or not console.is_terminal, "transient": True}
    for begin in track(range(0, len(tasks), AT_ONCE), "sampling", **shown):
        asked = [task for task in tasks[begin : begin + AT_ONCE] for _ in range(arguments.group)]
        given = rollouts.answers(policy, asked, (arguments.seed, begin), tokens=arguments.answer)
        reward_PG = judge(asked, given).reshape(-1, arguments.group)
        lines = rollouts.chosen_lines(tasks[begin : begin + AT_ONCE], given, reward_PG, arguments.at_least)
        with clear_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for name, found in zip(counts, lines):
                counts[name] += len(found)
                with (out / name).open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
    if not arguments.quiet:
        for name, count in counts.items():
            print(f"{out / name}: {count:,} of {len(tasks):,} prompts")
    return 0
