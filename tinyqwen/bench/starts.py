"""What a person waits for: from the command to the first token."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tinyqwen.bench.contestants.task import Task, timed
from tinyqwen.bench.team import Lost

PROMPT = "Hello"


def start_seconds(task: Task, first_ever: bool = False) -> float:
    """Seconds that `tinyqwen generate` takes for one token, from start to end of its process.

    first_ever   with an empty cache folder: kernels have to be compiled, weights to be quantised

    Errors: Lost says why it did not work.
    """
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        if first_ever:
            environment["TINYQWEN_CACHE"] = empty
        backend = task.options.get("backend", "cpu")
        command = [sys.executable, "-m", "tinyqwen", "generate", "--model", str(task.folder), "--backend", backend,
                   "--dtype", task.dtype, "--greedy", "--max-tokens", "1", "--quiet", PROMPT]  # fmt: skip
        if backend == "cpu":
            command += ["--threads", str(task.threads)]

        def once():
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise Lost(lines[-1][:300])

        return timed(once)
