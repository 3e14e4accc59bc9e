"""How many threads: the cores that this process may use, asked of the system. `team.py` is what they do."""

from __future__ import annotations

import math
import os
from pathlib import Path


def most_threads() -> int:
    """The cores that this process is bound to; more threads would only take turns."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """The cores that this process may keep busy: those it is bound to, and no more than a container pays for."""
    return max(1, int(min(most_threads(), quota())))


def quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """How many cores' worth of time the control groups of this process allow; infinity without a limit.

    Threads beyond it would only be stopped for the rest of each tenth of a second.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    least = math.inf
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, read = root, read_quota_2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", read_quota_1
        else:
            continue
        place = base / path.lstrip("/")
        for group in (place, *place.parents):  # a limit of any group above counts; in a container all may seem to be
            if group.is_relative_to(base):  # at the root
                least = min(least, read(group))
    return least


def read_quota_2(group: Path) -> float:
    """cgroup version 2: `cpu.max` holds microseconds allowed (or "max") in so many."""
    try:
        allowed, period = (group / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return math.inf


def read_quota_1(group: Path) -> float:
    """cgroup version 1: -1 means no limit."""
    try:
        allowed, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return math.inf if allowed < 0 else allowed / period
    except (OSError, ValueError):
        return math.inf
