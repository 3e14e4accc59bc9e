"""The parent's side: contestants in processes of their own, asked in turn.

Several numerical libraries in one process fight for threads and memory, so each contestant has a process. Only one
works at a time; the others sleep on their pipes. A short pause after each answer lets its threads go to sleep, too,
because OpenMP's keep spinning for a moment.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from tinyqwen.errors import TinyqwenError

MODULES = {
    "tinyqwen": "tinyqwen.bench.contestants.ours",
    "llama.cpp": "tinyqwen.bench.contestants.llama_cpp",
    "openvino": "tinyqwen.bench.contestants.openvino",
    "transformers": "tinyqwen.bench.contestants.transformers",
}
OURS = "tinyqwen"
MACHINE = "tinyqwen.bench.contestants.machine"
PAUSE = 0.1  # seconds after each answer
SHORT = 0.2  # seconds; the system counts busy time in hundredths, too coarse for less
PATIENCE = 1800.0  # seconds for one answer; reading 8192 tokens takes minutes on slow machines


class Lost(TinyqwenError):
    """A contestant cannot go on. The message is one line that says why."""


class Entry(NamedTuple):
    """Who is measured: a contestant and a weight format."""

    name: str
    dtype: str

    def __str__(self):
        return f"{self.name} {self.dtype}".strip()


class Process:
    """A worker process and the pipes to it; use it in a `with`.

    Errors: every method raises Lost if the process has died, says that something failed, or takes too long.
    """

    def __init__(self, module: str, threads: int):
        count = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "PYTHONUNBUFFERED": "1",
                       "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                       "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # fmt: skip
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed on exit)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinyqwen.bench.worker", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=environment,
        )  # fmt: skip
        self.others = 0.0
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers:
            for line in answers:
                self.answers.put(line)
        self.answers.put(None)

    def ask(self, ask: str, patience: float = PATIENCE, **settings) -> Any:
        """The answer to one question; `others` then is the share of the processors that others took meanwhile."""
        busy, start = busy_seconds(), time.perf_counter()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the missing answer says so
            self.process.stdin.write(json.dumps({"ask": ask, **settings}) + "\n")
            self.process.stdin.flush()
        try:
            line = self.answers.get(timeout=patience)
        except queue.Empty:
            raise Lost(f"no answer within {patience:.0f} seconds") from None
        if line is None:
            raise Lost(self.last_words())
        reply, wall = json.loads(line), time.perf_counter() - start
        if "error" in reply:
            raise Lost(reply["error"])
        taken = busy_seconds() - busy - reply["worked"]
        self.others = max(0.0, taken) / wall / (os.cpu_count() or 1) if wall > SHORT else 0.0
        time.sleep(PAUSE)
        return reply["answer"]

    def last_words(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip()]
        return f"its process ended ({code}){': ' + lines[-1][:200] if lines else ''}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join()
        self.said.close()


def busy_seconds() -> float:
    """Seconds that all processors together have worked since the machine started; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _idle, _waiting, *more = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


def missing(name: str) -> str | None:
    """Why that contestant cannot take part here, or None if its packages are there.

    >>> missing("tinyqwen") is None
    True
    """
    needs = importlib.import_module(MODULES[name]).NEEDS
    absent = [package for package in needs if importlib.util.find_spec(package) is None]
    return f"{' and '.join(absent)} not installed; pip install 'tinyqwen[bench]'" if absent else None


def formats(name: str) -> tuple[str, ...]:
    """The weight formats that a contestant has.

    >>> formats("llama.cpp")
    ('bf16', 'int8', 'int4')
    """
    return importlib.import_module(MODULES[name]).FORMATS


def groups(sizes: dict[str, float], room: float) -> list[list[str]]:
    """Which formats can be in memory together, in order: each group takes at most that room, or is a single format.

    >>> groups({"bf16": 12, "int8": 5, "int4": 4}, 20), groups({"bf16": 12, "int8": 5, "int4": 4}, 10)
    ([['bf16', 'int8'], ['int4']], [['bf16'], ['int8', 'int4']])
    """
    found: list[list[str]] = []
    used = 0.0
    for dtype, size in sizes.items():
        if not found or used + size > room:
            found.append([])
            used = 0.0
        found[-1].append(dtype)
        used += size
    return found
