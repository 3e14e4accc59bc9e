"""Where things are kept between starts: compiled kernels, quantised weights, models made for benchmarks."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """TINYQWEN_CACHE, else XDG_CACHE_HOME/tinyqwen, else ~/.cache/tinyqwen. It need not exist."""
    own, users = os.environ.get("TINYQWEN_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(users) / "tinyqwen").expanduser()
