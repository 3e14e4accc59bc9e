"""Where the model runs. `get("numpy")` returns a backend; `interface.py` explains what one is."""

from __future__ import annotations

import numpy as np

from backends.interface import Backend, Cost, Operation, Wrapper, nbytes, operation, shape_only
from backends.meta import Meta

__all__ = ["NAMES", "Backend", "Cost", "Operation", "Wrapper", "get", "nbytes", "operation", "shape_only"]

NAMES = ("numpy",)  # those that compute; every test of an operation runs on each


def get(name: str) -> Backend:
    """The backend of that name.

    numpy   the definitions themselves on NumPy arrays: the truth that every other backend is tested against
    meta    shapes alone, see `meta.py`

    >>> get("numpy").xp.__name__
    'numpy'
    """
    if name == "meta":
        return Meta()
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; there is {', '.join(NAMES)}")
    return Backend(np)
