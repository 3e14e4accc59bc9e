"""Write what the lessons print into tests/walkthrough/goldens.

    python -m tests.walkthrough.make_goldens [NN_topic ...]

Without names: all lessons that have a golden, or that have answers in answers.py. Read the difference before you
commit it: a number that changed is a lesson that changed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.walkthrough.answers import ANSWERS
from tests.walkthrough.lessons import GOLDENS, LESSONS, fixed, run_lesson


def main(names: list[str]) -> None:
    for name in names or [name for name in LESSONS if name in ANSWERS or (GOLDENS / f"{name}.txt").exists()]:
        with tempfile.TemporaryDirectory() as folder:
            done = run_lesson(name, Path(folder))
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        (GOLDENS / f"{name}.txt").write_text(fixed(done.stdout), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
