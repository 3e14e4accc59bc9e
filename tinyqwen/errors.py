"""Errors that a person caused or can mend. Each is one clear line, and the exit code of the program.

Anything else that escapes is a bug of ours and may show its traceback.
"""

from __future__ import annotations


class TinyqwenError(Exception):
    """Something failed while running: exit code 1. The message says what, where and what to do."""

    exit_code = 1


class UsageError(TinyqwenError):
    """A flag, prompt or setting is out of range."""

    exit_code = 2


class ModelFilesError(TinyqwenError):
    """A checkpoint, config or tokenizer file is missing, broken or not supported."""

    exit_code = 3


class DoesNotFitError(TinyqwenError):
    """The model or its cache needs more memory than there is."""

    exit_code = 4


class NetworkError(TinyqwenError):
    """A download failed: offline, not found, no access, or the connection broke."""

    exit_code = 5


class DiskFullError(TinyqwenError):
    """There is no room for the files."""

    exit_code = 6
