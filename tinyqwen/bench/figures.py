"""The figures by which this project is judged, from what was measured: each a ratio and what it should at least (or at
most) be. Where two contestants are compared, they are compared within each round.

A peer counts in its best form: the fastest of the peers at equal bits when decoding, the fastest of all their formats
when reading a prompt.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from tinyqwen.bench.limits import Work
from tinyqwen.bench.numbers import Spread, within_rounds
from tinyqwen.bench.rounds import Question, Results
from tinyqwen.bench.team import OURS, Entry

OVER_PEERS = {"bf16": 1.2, "int8": 1.5, "int4": 1.5}  # decoding; bf16 is bound by bandwidth, which allows no more
OF_BANDWIDTH = {"bf16": 0.85, "int8": 0.85, "int4": 0.65}
OVERHEAD = 300e6  # bytes of memory beyond weights and cache
DEEP, SLOWER = 8192, 1.10
TOGETHER = 4.0


class Figure(NamedTuple):
    """One judgement.

    what     in words
    dtype    the weight format, "best" where the best of all counts
    value    median and spread
    bar      what it should be
    most     whether the bar is a limit from above
    """

    what: str
    dtype: str
    value: Spread
    bar: float
    most: bool = False

    @property
    def met(self) -> bool:
        return self.value.median <= self.bar if self.most else self.value.median >= self.bar


def figures(results: Results, works: dict[tuple[str, Question], Work], kv_bytes: dict[str, float]) -> list[Figure]:
    """All that these results can say; what was not measured is left out.

    works      what the model must do, by format and question
    kv_bytes   of the cache when memory was measured, by format
    """
    rounds, found = results.rounds, []
    formats = list(dict.fromkeys(entry.dtype for entry, _ in rounds if entry.name == OURS))
    questions = list(dict.fromkeys(question for _, question in rounds))
    plain = [question for question in questions if question.kind == "decode" and question.sequences == 1]
    shallow = next((question for question in plain if question.depth == 0), Question("decode", 0))
    for dtype in formats:
        ours = Entry(OURS, dtype)
        alone = rounds.get((ours, shallow), [])
        if not alone:
            continue
        if best := fastest(results, ("llama.cpp", "openvino"), shallow, dtype):
            ratio = Spread.of(within_rounds(alone, rounds[best, shallow]))
            found.append(Figure(f"decode over {best}", dtype, ratio, OVER_PEERS.get(dtype, 1.0)))
        if dtype in OF_BANDWIDTH and (reads := results.reads.get((ours, shallow))):
            moved = [speed * results.token_bytes[ours] for speed in alone]
            share = Spread.of(within_rounds(moved, reads))
            found.append(Figure("decode, weight bytes/s of the read bandwidth", dtype, share, OF_BANDWIDTH[dtype]))
        found += deep(results, works, dtype, shallow, plain)
        for question in questions:
            if question.sequences > 1 and (speeds := rounds.get((ours, question))):
                ratio = Spread.of(within_rounds(speeds, alone))
                found.append(Figure(f"{question} over one alone", dtype, ratio, TOGETHER))
        if ours in results.peak_bytes and dtype in kv_bytes:
            beyond = results.peak_bytes[ours] - results.weight_bytes[ours] - kv_bytes[dtype]
            found.append(Figure("peak memory beyond weights and cache, MB", dtype, Spread(*[beyond / 1e6] * 3),
                                OVERHEAD / 1e6, most=True))  # fmt: skip
    return found + prefill(results, questions)


def deep(results: Results, works: dict, dtype: str, shallow: Question, plain: Iterable[Question]) -> list[Figure]:
    """How much slower a token is deep in a text than its extra keys and values explain."""
    ours, found = Entry(OURS, dtype), []
    for question in plain:
        if question.depth < DEEP or not (speeds := results.rounds.get((ours, question))):
            continue
        extra, beside = works[dtype, question].kv - works[dtype, shallow].kv, (ours, question)
        expected = [1 / alone + extra / read for alone, read in zip(results.shallow[beside], results.reads[beside])]
        slower = Spread.of([1 / speed / seconds for speed, seconds in zip(speeds, expected)])
        found.append(Figure(f"{question}: time over what the cache's bytes explain", dtype, slower, SLOWER, most=True))
    return found


def prefill(results: Results, questions: Iterable[Question]) -> list[Figure]:
    """Prompts of 512 tokens: the best format of ours over the best of theirs."""
    found = []
    for question in questions:
        if question.kind != "prefill" or question.tokens != 512 or not (ours := fastest(results, (OURS,), question)):
            continue
        for peers, bar in ((("llama.cpp", "transformers"), 1.3), (("openvino",), 1.0)):
            if best := fastest(results, peers, question):
                ratio = Spread.of(within_rounds(results.rounds[ours, question], results.rounds[best, question]))
                found.append(Figure(f"{question}, {ours} over {best}", "best", ratio, bar))
    return found


def fastest(results: Results, names: Iterable[str], question: Question, dtype: str | None = None) -> Entry | None:
    """Whose median is highest among those, in that format or in any; None if none was measured."""
    speeds = {
        entry: statistics.median(values)
        for (entry, asked), values in results.rounds.items()
        if asked == question and entry.name in names and dtype in (None, entry.dtype) and values
    }
    return max(speeds, key=lambda entry: speeds[entry], default=None)
