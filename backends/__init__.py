"""Where the model runs. `get("numpy")` returns a backend; `interface.py` explains what one is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from backends.interface import Backend, Cost, Operation, Wrapper, host, nbytes, operation, shape_only
from backends.meta import Meta

__all__ = [
    "ALIASES", "DEVICES", "NAMES", "Backend", "Cost", "Operation", "Wrapper", "choose", "get", "host", "nbytes",
    "operation", "shape_only",
]  # fmt: skip

NAMES = ("numpy", "cpu")  # those that compute on every machine
DEVICES = ("cuda",)  # those that need one
ALIASES = {"numba": "cpu", "cupy": "cuda"}  # the technologies' names


def get(name: str, *, features: Iterable[str] | None = None, threads: int | None = None) -> Backend:
    """The backend of that name.

    numpy      the definitions themselves on NumPy arrays: the truth that every other backend is tested against
    cpu        Numba kernels with explicit SIMD; `numba` means the same. Importing Numba waits until it is asked for
    cuda       CuPy and CUDA kernels, on an NVIDIA GPU; `cupy` means the same
    auto       cuda where there is a GPU that can be used, else cpu, see `choose`
    meta       shapes alone, see `meta.py`

    features   of the processor, see `cpu/features.py`; () for those that every processor has. Default: all it has
    threads    that run a kernel; default: the cores that this process may use

    Errors: ValueError says what may be asked for, or what the GPU lacks.

    >>> get("numpy").xp.__name__, get("numba", threads=1).name
    ('numpy', 'cpu')
    """
    if name == "auto":
        name = "cpu" if features is not None or threads is not None else choose()[0]
    if ALIASES.get(name, name) == "cpu":
        from backends.cpu import Cpu

        return Cpu(features, threads)
    if features is not None or threads is not None:
        given = "threads are a setting" if features is None else "features are a setting"
        raise ValueError(f"{given} of the cpu backend, not of {name}")
    if name == "meta":
        return Meta()
    if ALIASES.get(name, name) == "cuda":
        from backends.cuda import Cuda
        from backends.nvidia import open_cupy

        return Cuda(open_cupy())
    if name not in NAMES:
        raise ValueError(f"backend {name!r} is not known; there is {', '.join((*NAMES, *DEVICES))}")
    return Backend(np)


def choose() -> tuple[str, str | None]:
    """The fastest backend of this machine, and, if it has a GPU that cannot be used, why not.

    A machine without NVIDIA's driver is not asked further, and starts as fast as if there were no cuda backend.
    """
    from backends.nvidia import NoGpu, driver_is_here, open_cupy

    if not driver_is_here():
        return "cpu", None
    try:
        open_cupy()
    except NoGpu as error:
        return "cpu", str(error)
    return "cuda", None
