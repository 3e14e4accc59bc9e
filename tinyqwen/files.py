"""Texts in files, written whole or not at all, and what the system's refusals mean, in one line.

part = FILE.part --all of it is there--> renamed to FILE, whose old content nobody lost if that went wrong
"""

from __future__ import annotations

import errno
import sys
from contextlib import contextmanager
from pathlib import Path

from tinyqwen.errors import DiskFullError, UsageError


@contextmanager
def clear_errors(place: Path):
    """Errors of the system as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{place}: the disk is full; nothing was saved; make room or save elsewhere") from None
        raise UsageError(f"{place}: cannot be written ({error.strerror}); save elsewhere") from None


def read_text(path: Path | str, what: str = "") -> str:
    """The text of a file. `what` it is stands before its name where it cannot be read: UsageError."""
    path, what = Path(path).expanduser(), f"{what} " if what else ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}{path}: is not valid UTF-8 (at byte {error.start}); is it a binary file?") from None
    except OSError as error:
        raise UsageError(f"{what}{path}: cannot be read ({error.strerror})") from None


def write_whole(path: Path | str, text: str) -> None:
    """Write a file; if that fails, it is as it was before. A pipe or a device is written to as it is.

    Errors: DiskFullError, UsageError.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "found.json"
    >>> write_whole(path, "{}"); path.read_text(), [each.name for each in path.parent.iterdir()]
    ('{}', ['found.json'])
    """
    path = Path(path).expanduser()
    with clear_errors(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()  # a link stays one
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def check_target(target: str) -> None:
    """UsageError for a file that cannot be there: asked before a long run, not after it."""
    if target != "-" and Path(target).is_dir():
        raise UsageError(f"{target} is a directory; name a file to write")
    if target != "-" and not Path(target).parent.is_dir():
        raise UsageError(f"{target}: there is no such folder to write into")


def write(text: str, target: str) -> None:
    """Into that file, whole or not at all, or to standard output for `-`. Errors: DiskFullError, UsageError."""
    if target == "-":
        sys.stdout.write(text)
    else:
        write_whole(target, text)


def size_in_words(count: int) -> str:
    """
    >>> size_in_words(988_000_000), size_in_words(1_540_000_000), size_in_words(3_200)
    ('988 MB', '1.5 GB', '3 kB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
