"""How much memory there is, to refuse what cannot fit before anything is read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from tinyqwen.errors import DoesNotFitError
from tinyqwen.files import size_in_words


def available_bytes() -> int | None:
    """Memory that a program may still take, in bytes; None where the system does not say.

    The smaller of what the machine has free (caches count as free) and what a container may still use.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def peak_bytes() -> int | None:
    """The most memory that this process has used so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed() -> bool:
    """Let memory that is freed stay with the process, for whoever asks next; whether that is possible here (glibc).

    A training step frees some hundred megabytes at its end and asks for them again in the next one. Given back to the
    system meanwhile, they come as pages of zeros, one fault each: 0.1 s in a step of 0.65 s.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    most, trim, largest = -4, -1, 2**31 - 1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    return bool(mallopt(most, 0) and mallopt(trim, largest))


def give_back() -> None:
    """Return freed memory to the system now (glibc). It keeps some for whoever asks next: 36 MB after a tokenizer."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def require(needed: int, what: str, hint: str, available: int | None = None) -> None:
    """DoesNotFitError with the numbers, if that many bytes are more than there are: on a device, or on this machine.

    >>> require(2**60, "the world", "take a smaller one")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyqwen.errors.DoesNotFitError: the world needs 1152921504.6 GB, but ... are available; take a smaller one
    """
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise DoesNotFitError(
            f"{what} needs {size_in_words(needed)}, but {size_in_words(available)} are available; {hint}"
        )
