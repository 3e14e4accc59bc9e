"""Teach a model. Each stage goes on from a model folder and leaves others like it, which chat, transformers, and the
next stage load:

  tinyqwen train pretrain --model FOLDER --data text.txt OUT      predict the next token of plain text
  tinyqwen train sft --model FOLDER --data chats.jsonl OUT        say what the assistant says in conversations
  tinyqwen train dpo --model FOLDER --data pairs.jsonl OUT        prefer one of two answers to the other
  tinyqwen train online-dpo --model FOLDER --data prompts.jsonl OUT     prefer the best of its own answers to the worst
  tinyqwen train grpo --model FOLDER --data prompts.jsonl OUT     learn from all of its own answers, by a group's mean
  tinyqwen train reward --model FOLDER --data pairs.jsonl OUT     a judge of answers, where no rule is one
  tinyqwen train sample --model FOLDER --data prompts.jsonl OUT   rejection sampling: write chats and pairs
  tinyqwen train upcycle --model FOLDER OUT                       make a mixture of experts of a dense model
  tinyqwen train curve OUT                                        how a run went; --svg FILE draws it
  tinyqwen chat --model OUT/step-001000                           talk with what came of it

The same command continues a run that was interrupted, exactly: the weights become those of a run that was not.
`tinyqwen train STAGE --help` tells what its data look like.
"""

from __future__ import annotations

import argparse

from tinyqwen.cli import train_curve, train_run, train_sample, train_upcycle
from tinyqwen.cli.train_kinds import KINDS

OWN = {"sample": train_sample, "upcycle": train_upcycle, "curve": train_curve}  # what is no loop of steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    summaries = {**{name: kind.summary for name, kind in KINDS.items()},
                 **{name: module.SUMMARY for name, module in OWN.items()}}  # fmt: skip
    for name, summary in summaries.items():
        about = (OWN.get(name) or KINDS[name].module).__doc__
        stage = stages.add_parser(
            name, help=summary, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in OWN:
            OWN[name].add_arguments(stage)
        else:
            train_run.add_arguments(stage, KINDS[name])
        stage.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(arguments: argparse.Namespace) -> int:
    if arguments.stage in OWN:
        return OWN[arguments.stage].run(arguments)
    return train_run.run(arguments)
