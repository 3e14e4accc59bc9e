"""Everything in turn, round after round: what disturbs one contestant disturbs its neighbours as well.

A machine is never quiet, and slows down and speeds up over minutes. So nobody is measured alone: each round asks every
contestant every question, in an order that moves on by one each time, and figures are compared within a round. The
first round warms up and is thrown away.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from tinyqwen.bench.contestants.task import Task
from tinyqwen.bench.team import MACHINE, MODULES, OURS, Entry, Lost, Process

DISTURBED, TRIES = 0.05, 4  # others' share of the processors, and how often a disturbed measurement is made


class Question(NamedTuple):
    """What is measured.

    kind        prefill or decode
    tokens      of the prompt, or how many each sequence decodes in a round
    depth       tokens in the cache before; decode only
    sequences   decoded together
    """

    kind: str
    tokens: int
    depth: int = 0
    sequences: int = 1

    def __str__(self):
        if self.kind == "prefill":
            return f"prefill {self.tokens}"
        return f"decode at {self.depth}" if self.sequences == 1 else f"decode {self.sequences} together"


@dataclass
class Results:
    """What a run found.

    about          of each entry, what it says of itself: version, settings
    weight_bytes   of each entry, and token_bytes: how many of them decoding one token reads
    peak_bytes     of each entry, after loading, a prompt and some tokens
    rounds         tokens per second of each entry and question, a number each round
    others         shares of the processors that other programs took while each of these numbers was measured
    reads          bytes per second that the machine read right before and after each entry decoded, the mean: a machine
                   that is shared, or moves its cores, may read twice as fast in one minute as in the next
    shallow        our own tokens per second at depth 0, right before each that was measured deeper
    limits         of the machine, once each round; as of `tinyqwen.bench.limits.Limits`
    lost           who could not take part or go on, and why
    """

    about: dict[Entry, dict] = field(default_factory=dict)
    weight_bytes: dict[Entry, int] = field(default_factory=dict)
    token_bytes: dict[Entry, int] = field(default_factory=dict)
    peak_bytes: dict[Entry, int] = field(default_factory=dict)
    rounds: dict[tuple[Entry, Question], list[float]] = field(default_factory=dict)
    reads: dict[tuple[Entry, Question], list[float]] = field(default_factory=dict)
    shallow: dict[tuple[Entry, Question], list[float]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    limits: list[dict] = field(default_factory=list)
    lost: dict[Entry, str] = field(default_factory=dict)

    def add(self, other: Results) -> None:
        for name in ("about", "weight_bytes", "token_bytes", "peak_bytes", "rounds", "reads", "shallow", "lost"):
            getattr(self, name).update(getattr(other, name))
        self.limits += other.limits
        self.others += other.others


def run(
    tasks: dict[Entry, Task],
    questions: Sequence[Question],
    rounds: int,
    threads: int,
    report: Callable[[str], None] = lambda text: None,
) -> Results:
    """Measure all of these together. `report` is told what is going on, before each thing that takes time."""
    results = Results()
    with ExitStack() as stack:
        processes: dict[Entry, Process] = {}
        for entry, task in tasks.items():
            try:
                report(f"{entry}: preparing")
                with Process(MODULES[entry.name], threads) as process:
                    process.ask("prepare", **as_json(task))
                report(f"{entry}: loading")
                process = stack.enter_context(Process(MODULES[entry.name], threads))
                loaded = process.ask("load", **as_json(task))
                results.about[entry] = loaded["about"]
                results.weight_bytes[entry], results.token_bytes[entry] = loaded["weight_bytes"], loaded["token_bytes"]
                process.ask("prefill", tokens=512)
                process.ask("decode", depth=0, tokens=16, sequences=1)
                results.peak_bytes[entry] = process.ask("peak")
                processes[entry] = process
            except Lost as error:
                results.lost[entry] = str(error)
        machine = stack.enter_context(Process(MACHINE, threads))
        first = next(iter(tasks.values()))
        machine.ask("load", **as_json(first))
        for number in range(rounds + 1):
            what = f"round {number} of {rounds}" if number else "warm-up"
            report(f"{what}: the machine itself")
            tries = TRIES if number else 1
            limits, others = quietest(machine, lambda: machine.ask("limits"), tries)
            if number:
                results.limits.append(limits)
                results.others.append(others)
            for question in questions:
                for entry in moved_on(list(processes), number):
                    report(f"{what}: {question}, {entry}")
                    decodes = number and question.kind == "decode"
                    reads = [machine.ask("read")] if decodes else []
                    try:
                        process = processes[entry]
                        if decodes and question.depth and entry.name == OURS:
                            before = ask_once(process, question._replace(depth=0))
                            results.shallow.setdefault((entry, question), []).append(before)
                        speed, others = quietest(process, partial(ask_once, process, question), tries)
                    except Lost as error:
                        results.lost[entry] = f"{question}: {error}"
                        del processes[entry]
                        continue
                    if decodes:
                        reads.append(machine.ask("read"))
                        results.reads.setdefault((entry, question), []).append(statistics.fmean(reads))
                    if number:
                        results.rounds.setdefault((entry, question), []).append(speed)
                        results.others.append(others)
    return results


def as_json(task: Task) -> dict:
    return {**asdict(task), "folder": str(task.folder), "exports": str(task.exports)}


def quietest(process: Process, ask: Callable[[], Any], tries: int) -> tuple[Any, float]:
    """The answer, and the share of the processors that others took meanwhile.

    Disturbed, it is asked again, `tries` times in all, and the least disturbed answer counts: not the fastest. That
    holds for the machine's own limits, too: a disturbed bandwidth would flatter whoever is compared with it.
    """
    found = []
    for _ in range(tries):
        answer = ask()
        found.append((process.others, answer))
        if process.others <= DISTURBED:
            break
    others, answer = min(found, key=lambda each: each[0])
    return answer, others


def ask_once(process: Process, question: Question) -> float:
    """Tokens per second."""
    if question.kind == "prefill":
        return question.tokens / process.ask("prefill", tokens=question.tokens)
    seconds = process.ask("decode", depth=question.depth, tokens=question.tokens, sequences=question.sequences)
    return question.sequences * len(seconds) / sum(seconds)


def moved_on(items: list, by: int) -> list:
    """The same items, beginning with another one.

    >>> moved_on([1, 2, 3], 4)
    [2, 3, 1]
    """
    by %= max(1, len(items))
    return items[by:] + items[:by]
