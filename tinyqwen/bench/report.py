"""What was found, as JSON for programs and as Markdown tables for people."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyqwen import __version__
from tinyqwen.bench.figures import Figure
from tinyqwen.bench.limits import Limits, Work
from tinyqwen.bench.numbers import Spread, short
from tinyqwen.bench.rounds import Question, Results
from tinyqwen.bench.team import Entry

HEADS = ("model", "measured", "who", "tokens/s", "spread", "of ceiling")


class Sized(NamedTuple):
    """Everything about one model.

    works    what it must do, by format and question; the ceilings follow
    starts   seconds from the command to the first token, by (format, "warm" or "first ever")
    """

    name: str
    results: Results
    works: dict[tuple[str, Question], Work]
    figures: list[Figure]
    starts: dict[tuple[str, str], float]


def limits_of(results: Results) -> Limits:
    """The machine's limits, as medians over the rounds."""
    rounds = [Limits(**limits) for limits in results.limits]
    peaks = {key: Spread.of([one.peaks[key] for one in rounds]).median for key in rounds[0].peaks}
    return Limits(Spread.of([one.read for one in rounds]).median, peaks)


def ceiling(results: Results, works: dict, entry: Entry, question: Question) -> float | None:
    """Tokens per second that this machine allows; None where it was not measured."""
    work = works.get((entry.dtype, question))
    if work is None or not results.limits:
        return None
    read = results.token_bytes.get(entry, work.weights)  # fewer, if packed (`backends/packed.py`) or sketched
    work = work._replace(weights=min(work.weights, read))
    return work.tokens / work.seconds(limits_of(results), entry.dtype)


def facts(models: Sequence[Sized], threads: int) -> dict[str, Any]:
    """All of it, ready for JSON. `others`: the share of the processors that other programs took, in the mean."""
    shares = [share for model in models for share in model.results.others]
    others = sum(shares) / max(1, len(shares))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tinyqwen": __version__,
        "machine": {**machine_facts(), "threads": threads, "others": others},
        "models": {model.name: model_facts(model) for model in models},
    }


def model_facts(model: Sized) -> dict[str, Any]:
    results = model.results
    measured = []
    for (entry, question), rounds in results.rounds.items():
        spread, top = Spread.of(rounds), ceiling(results, model.works, entry, question)
        measured.append({
            "who": entry.name, "dtype": entry.dtype, **question._asdict(), "tokens_per_s": spread._asdict(),
            "rounds": rounds, "reads": results.reads.get((entry, question)),
            "shallow": results.shallow.get((entry, question)),
            "ceiling_tokens_per_s": top, "of_ceiling": spread.median / top if top else None,
        })  # fmt: skip
    return {
        "limits": limits_of(results)._asdict() if results.limits else None,
        "limits_rounds": results.limits,
        "measured": measured,
        "contestants": {
            str(entry): {**about, "weight_bytes": results.weight_bytes[entry],
                         "token_bytes": results.token_bytes[entry], "peak_bytes": results.peak_bytes.get(entry)}
            for entry, about in results.about.items()
        },
        "figures": [{**figure._asdict(), "value": figure.value._asdict(), "met": figure.met}
                    for figure in model.figures],
        "start_seconds": [{"dtype": dtype, "when": when, "seconds": seconds}
                          for (dtype, when), seconds in model.starts.items()],
        "lost": {str(entry): why for entry, why in results.lost.items()},
    }  # fmt: skip


def machine_facts() -> dict[str, Any]:
    """What the system says of this machine, without its name."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = named[0] if named else processor
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.system(),
            "python": platform.python_version()}  # fmt: skip


# ---- tables ----


def rows(model: Sized) -> list[tuple[str, ...]]:
    """One row for everything measured, the fastest of each kind first; columns as HEADS."""
    results = model.results
    found = []
    order = list(dict.fromkeys(question for _, question in results.rounds))
    for (entry, question), rounds in results.rounds.items():
        spread, top = Spread.of(rounds), ceiling(results, model.works, entry, question)
        share = f"{spread.median / top:.0%}" if top else ""
        cells = (model.name, str(question), str(entry), short(spread.median),
                 f"{short(spread.low)} to {short(spread.high)}", share)  # fmt: skip
        found.append((order.index(question), -spread.median, cells))
    return [cells for _, _, cells in sorted(found)]


def figure_rows(model: Sized) -> list[tuple[str, ...]]:
    """One row for each figure: model, what, format, value, bar, whether it is met."""
    return [
        (model.name, figure.what, figure.dtype, str(figure.value),
         f"at {'most' if figure.most else 'least'} {short(figure.bar)}", "yes" if figure.met else "no")
        for figure in model.figures
    ]  # fmt: skip


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(("a", "b"), [("1", "x|y")]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(models: Sequence[Sized], found: dict[str, Any]) -> str:
    """The whole report."""
    machine = found["machine"]
    parts = [f"# Measured on {found['date'][:10]}\n\n{machine['processor']}, {machine['threads']} threads."]
    parts[0] += f" Other programs took {machine['others']:.0%} of the processors meanwhile."
    for model in models:
        if model.results.limits:
            limits = limits_of(model.results)
            peaks = ", ".join(f"{dtype} {peak / 1e9:,.0f}" for dtype, peak in limits.peaks.items())
            parts.append(f"{model.name}: memory reads at {limits.read / 1e9:.1f} GB/s; peaks in GFLOP/s: {peaks}.")
    parts.append(table(HEADS, [row for model in models for row in rows(model)]))
    judged = [row for model in models for row in figure_rows(model)]
    if judged:
        parts.append(table(("model", "figure", "weights", "median (spread)", "should be", "met"), judged))
    seen: dict[str, str] = {}
    for model in models:
        for entry, about in model.results.about.items():
            seen[str(entry)] = "; ".join(f"{value}" for value in about.values())
        parts += [f"{entry} is missing: {why}." for entry, why in model.results.lost.items()]
        parts += [f"{model.name} {dtype}: {short(seconds)} s from the command to the first token ({when})."
                  for (dtype, when), seconds in model.starts.items()]  # fmt: skip
    parts.append("\n".join(f"- {entry}: {about}" for entry, about in seen.items()))
    return "\n\n".join(parts) + "\n"
