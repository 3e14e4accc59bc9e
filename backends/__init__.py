"""Where the model runs. `get("numpy")` returns a backend; `interface.py` explains what one is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from backends.interface import Backend, Cost, Operation, Wrapper, nbytes, operation, shape_only
from backends.meta import Meta

__all__ = ["ALIASES", "NAMES", "Backend", "Cost", "Operation", "Wrapper", "get", "nbytes", "operation", "shape_only"]

NAMES = ("numpy", "cpu")  # those that compute; every test of an operation runs on each
ALIASES = {"numba": "cpu"}  # the technologies' names


def get(name: str, *, features: Iterable[str] | None = None, threads: int | None = None) -> Backend:
    """The backend of that name.

    numpy      the definitions themselves on NumPy arrays: the truth that every other backend is tested against
    cpu        Numba kernels with explicit SIMD; `numba` means the same. Importing Numba waits until it is asked for
    meta       shapes alone, see `meta.py`

    features   of the processor, see `cpu/features.py`; () for those that every processor has. Default: all it has
    threads    that run a kernel; default: the cores that this process may use

    Errors: ValueError says what may be asked for.

    >>> get("numpy").xp.__name__, get("numba", threads=1).name
    ('numpy', 'cpu')
    """
    if ALIASES.get(name, name) == "cpu":
        from backends.cpu import Cpu

        return Cpu(features, threads)
    if features is not None or threads is not None:
        raise ValueError(f"features and threads are settings of the cpu backend, not of {name}")
    if name == "meta":
        return Meta()
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; there is {', '.join(NAMES)}")
    return Backend(np)
