"""Teach a model, stage by stage. Each goes on from a model folder and leaves
others like it, which chat, transformers and the next stage load.

pretrain     predict the next token of plain text
             tinyqwen train pretrain --model FOLDER --data text.txt OUT
sft          say what the assistant says in conversations
             tinyqwen train sft --model FOLDER --data chats.jsonl OUT
dpo          prefer one of two answers to the other
             tinyqwen train dpo --model FOLDER --data pairs.jsonl OUT
online-dpo   prefer the best of its own answers to the worst
             tinyqwen train online-dpo --model FOLDER --data prompts.jsonl OUT
grpo         learn from all of its own answers, measured by their group's mean
             tinyqwen train grpo --model FOLDER --data prompts.jsonl OUT
reward       become a judge of answers, where no rule is one
             tinyqwen train reward --model FOLDER --data pairs.jsonl OUT

sample       rejection sampling: write chats and pairs from its own answers
             tinyqwen train sample --model FOLDER --data prompts.jsonl OUT
upcycle      make a mixture of experts of a dense model
             tinyqwen train upcycle --model FOLDER OUT
curve        show how a run went; --svg FILE draws it
             tinyqwen train curve OUT

tinyqwen chat --model OUT/step-001000 talks with what came of it. The same
command continues a run that was interrupted, exactly: the weights become those
of a run that was not. tinyqwen train STAGE --help shows its data.
"""

from __future__ import annotations

import argparse

from tinyqwen.cli import train_curve, train_run, train_sample, train_upcycle
from tinyqwen.cli.train_kinds import KINDS

OWN = {"sample": train_sample, "upcycle": train_upcycle, "curve": train_curve}  # what is no loop of steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", metavar="STAGE")
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
    if arguments.stage is None:
        print((__doc__ or "").strip())
        return 0
    if arguments.stage in OWN:
        return OWN[arguments.stage].run(arguments)
    return train_run.run(arguments)
