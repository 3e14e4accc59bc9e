"""One model, measured: who takes part in which formats, how many fit into memory together, and how soon ours starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from backends.cache_folder import cache_folder
from tinyqwen.bench.contestants.task import Task
from tinyqwen.bench.figures import figures
from tinyqwen.bench.limits import KV_BYTES, work
from tinyqwen.bench.report import Sized
from tinyqwen.bench.rounds import Question, Results
from tinyqwen.bench.rounds import run as run_rounds
from tinyqwen.bench.starts import start_seconds
from tinyqwen.bench.team import OURS, Entry, Lost, formats, groups, missing
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.formats import weight_bytes
from tinyqwen.memory import available_bytes

BESIDE = 1e9  # bytes that a contestant takes besides its weights: caches, work memory, its libraries
SHARE = 0.8  # of the memory that is free


def measure(
    name: str, folder: Path, names: list[str], dtypes: list[str], questions: list[Question], *, backend: str, kv: str,
    rounds: int, threads: int, starts: bool, sketch: bool, report: Callable[[str], None],
) -> Sized:  # fmt: skip
    """Everything about one model: in as few groups as memory allows, each of them measured together.

    names     who is measured, ours first; dtypes: in which weight formats
    backend   of ours, and kv: how its cache is stored
    starts    whether to time the start of the program, too; sketch: whether ours may choose with one
    """
    config = read_config(folder / "config.json")
    questions = [question for question in questions if fits(config, question)]
    results = Results()
    everyone = entries(names, dtypes, results)
    options = {"backend": backend, "kv": kv, "sketch": "yes" if sketch else "no"}
    exports = cache_folder() / "exports" / f"{name}-{key_of(folder)}"
    tasks = {entry: Task(folder, exports, entry.dtype, threads, options if entry.name == OURS else {})
             for entry in everyone}  # fmt: skip
    started = time_starts(name, tasks, results, report) if starts else {}
    for group in groups(needed(config, everyone), SHARE * (available_bytes() or 8e9)):
        together = {entry: task for entry, task in tasks.items() if entry.dtype in group}
        results.add(run_rounds(together, questions, rounds, threads,
                               lambda text: report(f"{name}: {text}")))  # fmt: skip
    works = {
        (dtype, question): work(
            config, dtype, kv, 1 if question.kind == "decode" else question.tokens, question.depth,
            question.sequences,
        )
        for dtype in {entry.dtype for entry in everyone}
        for question in questions
    }  # fmt: skip
    kv_bytes = {dtype: 512.0 * KV_BYTES[kv] * config.kv_values_per_token for dtype in dtypes}
    return Sized(name, results, works, figures(results, works, kv_bytes), started)


def fits(config: Config, question: Question) -> bool:
    """Whether the model can look that far back."""
    return question.depth + question.tokens <= config.context


def key_of(folder: Path) -> str:
    """What exports of this folder are filed under: they must not serve another model of the same name."""
    stat = (folder / "config.json").stat()
    return hashlib.sha256(repr((str(folder.resolve()), stat.st_mtime_ns, stat.st_size)).encode()).hexdigest()[:16]


def entries(names: list[str], dtypes: list[str], results: Results) -> list[Entry]:
    """Who takes part, format by format; a missing peer is noted. transformers also shows the float32 that it has."""
    found = []
    for name in names:
        if why := missing(name):
            results.lost[Entry(name, "")] = why
            continue
        wanted = dtypes if name != "transformers" else [*dtypes, *(["f32"] if "f32" not in dtypes else [])]
        found += [Entry(name, dtype) for dtype in wanted if dtype in formats(name)]
    order = [*dtypes, "f32"]
    return sorted(found, key=lambda entry: order.index(entry.dtype))


def needed(config: Config, everyone: list[Entry]) -> dict[str, float]:
    """Bytes of memory for all contestants of a format."""
    found: dict[str, float] = {}
    for entry in everyone:
        found[entry.dtype] = found.get(entry.dtype, 0.0) + weight_bytes(config, entry.dtype) + BESIDE
    return found


def time_starts(name: str, tasks: dict[Entry, Task], results: Results, report) -> dict[tuple[str, str], float]:
    """Seconds from the command to the first token, of ours in every format; the first ever in the first."""
    found: dict[tuple[str, str], float] = {}
    ours = [entry for entry in tasks if entry.name == OURS]
    for entry in ours:
        try:
            if entry == ours[0] and tasks[entry].options["backend"] == "cpu":
                report(f"{name}: first start ever, {entry}")
                found[entry.dtype, "first ever"] = start_seconds(tasks[entry], first_ever=True)
            report(f"{name}: start, {entry}")
            start_seconds(tasks[entry])  # makes what is missing
            found[entry.dtype, "warm"] = min(start_seconds(tasks[entry]) for _ in range(3))
        except Lost as error:
            results.lost[entry._replace(name=f"{entry.name} start")] = str(error)
    return found
