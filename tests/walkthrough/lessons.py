"""Where the lessons are, and what one prints when it is run as a reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GOLDENS = Path(__file__).parent / "goldens"
LESSONS = {path.stem: path for path in sorted((ROOT / "walkthrough").glob("[0-9][0-9]_*.py"))}

# Python runs a file of this name on its path before anything else: here, to forbid the network.
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"a lesson works offline, but this one asked for {arguments}")

sys.addaudithook(refuse)
"""


def run_lesson(name: str, folder: Path) -> subprocess.CompletedProcess:
    """`python walkthrough/NN_topic.py` from the repository's root: warnings are errors, and there is no network.

    folder   an empty one, for the file that forbids it
    """
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FORCE_COLOR", "TTY_"))}
    settings = {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-W", "error", f"walkthrough/{name}.py"]
    return subprocess.run(
        command, cwd=ROOT, env=keep | settings, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


def fixed(output: str) -> str:
    """What is the same on every machine: measured numbers, and blanks at the ends of lines, left out."""
    kept = [line.rstrip() for line in output.splitlines() if not line.startswith("measured:")]
    return "\n".join(kept) + "\n"
