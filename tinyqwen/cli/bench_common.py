"""What `bench` says of a processor and of a GPU alike: lists in flags, where results go, a line of progress."""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from pathlib import Path

from tinyqwen.errors import UsageError
from tinyqwen.files import check_target, clear_errors, write


def words(text: str) -> list[str]:
    """
    >>> words("int8, int4,int8")
    ['int8', 'int4']
    """
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def numbers(flag: str, text: str, least: int) -> list[int]:
    """The numbers of a flag.

    >>> numbers("--decode", "0,2048", 0), numbers("--decode", "", 0)
    ([0, 2048], [])
    """
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers with commas between, not {text!r}") from None
    if any(not least <= number <= 2**20 for number in found):
        raise UsageError(f"{flag} takes numbers from {least} to {2**20}, not {text!r}")
    return found


def check_outputs(arguments: argparse.Namespace) -> None:
    """Complain about places that cannot be written before anything takes time."""
    if arguments.json:
        check_target(arguments.json)
    if arguments.results:
        with clear_errors(Path(arguments.results)):
            Path(arguments.results).mkdir(parents=True, exist_ok=True)


def save(arguments: argparse.Namespace, found: dict, name: str) -> None:
    """All that was found as JSON, where the flags want it: NAME.json among the results, and in a file of its own."""
    text = json.dumps(found, indent=1) + "\n"
    if arguments.results:
        write(text, str(Path(arguments.results) / f"{name}.json"))
    if arguments.json:
        write(text, arguments.json)


@contextmanager
def progress(quiet: bool):
    """Gives a function (text) that shows what is going on, on standard error: a line that changes, if it can."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield status.update
