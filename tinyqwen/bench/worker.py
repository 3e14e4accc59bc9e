"""A process that measures one contestant and waits, asleep, while the others are measured.

    python -m tinyqwen.bench.worker MODULE

It reads a question a line from standard input and answers with a line of JSON on standard output:

    {"ask": "load", "folder": ..., ...}          ->  {"answer": {"about": ..., "weight_bytes": ..., "token_bytes": ...}}
    {"ask": "prefill", "tokens": 512}            ->  {"answer": 0.61, "worked": 1.2}, seconds of processor time
    {"ask": "peak"}                              ->  {"answer": 1234567890}, bytes of memory at most so far
    anything that goes wrong                     ->  {"error": "one line"}

Whatever libraries print goes to standard error, so that it cannot be taken for an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tinyqwen.bench.contestants.task import Task
from tinyqwen.memory import peak_bytes


class Worker:
    """What a process knows: its contestant, and the model once that is loaded."""

    def __init__(self, module: str):
        self.module = importlib.import_module(module)
        self.model: Any = None

    def answer(self, question: dict) -> Any:
        asked = dict(question)
        ask = asked.pop("ask")
        if ask == "prepare":
            return self.module.prepare(task_of(asked))
        if ask == "load":
            self.model = self.module.load(task_of(asked))
            return {name: getattr(self.model, name) for name in ("about", "weight_bytes", "token_bytes")}
        if ask == "peak":
            return peak_bytes()
        return getattr(self.model, ask)(**asked)


def task_of(asked: dict) -> Task:
    """A task from its JSON."""
    return Task(**{**asked, "folder": Path(asked["folder"]), "exports": Path(asked["exports"])})


def serve(worker: Worker, questions: TextIO, answers: TextIO) -> None:
    """Answer every line until there are no more.

    >>> import io
    >>> answers = io.StringIO()
    >>> serve(Worker("tinyqwen.bench.contestants.ours"), io.StringIO('{"ask": "prefill", "tokens": 2}'), answers)
    >>> answers.getvalue()  # doctest: +ELLIPSIS
    '{"error": "AttributeError: ...
    """
    for line in questions:
        before = time.process_time()
        try:
            answer = worker.answer(json.loads(line))
            reply = {"answer": answer, "worked": time.process_time() - before}
        except Exception as error:
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(Worker(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
