"""A second process that compiles the same kernels from the other end, so that the first start takes half as long.

Numba compiles one function at a time in a process. Each of the two looks on disk before it compiles a kernel, and what
the other has done by then lies there: this one begins with a prompt's kernels, that one with decoding's, and they meet.
What it cannot do (no second core, no room on the disk, an installation of its own kind) costs nothing but its help.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import backends
from tinyqwen.prepare import Tiny, run


@contextlib.contextmanager
def second_process(backend: Any, tinies: list[Tiny]) -> Iterator[Callable[[], None]]:
    """In this block, the function that it gives starts the process, once, if the backend has a second thread for it."""
    started: list[subprocess.Popen] = []

    def begin() -> None:
        if started or backend.threads == 1 or not sys.executable:
            return
        python = [sys.executable, "-m", "tinyqwen.prepare_beside"]
        here = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        silent = subprocess.DEVNULL
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as task:
            pickle.dump((backend.features, tinies), task)
            task.seek(0)
            started.append(subprocess.Popen(python, stdin=task, stdout=silent, stderr=silent, env=here))

    try:
        yield begin
    finally:
        for process in started:  # all is at hand now, whatever it is still doing
            process.kill()
            process.wait()


def main() -> None:
    features, tinies = pickle.load(sys.stdin.buffer)
    backend = backends.get("cpu", features=features, threads=2)
    for tiny in reversed(tinies):
        run(backend, tiny, backwards=True)


if __name__ == "__main__":
    main()
