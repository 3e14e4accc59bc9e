"""Where the model runs. `get("numpy")` returns a backend; `interface.py` explains what one is."""

from __future__ import annotations

import numpy as np

from backends.interface import Backend, Cost, Operation, Wrapper, nbytes, operation, shape_only

__all__ = ["NAMES", "Backend", "Cost", "Operation", "Wrapper", "get", "nbytes", "operation", "shape_only"]

NAMES = ("numpy",)


def get(name: str) -> Backend:
    """The backend of that name.

    numpy   the definitions themselves on NumPy arrays: the truth that every other backend is tested against

    >>> get("numpy").xp.__name__
    'numpy'
    """
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; there is {', '.join(NAMES)}")
    return Backend(np)
