"""Is there a GPU that this program can use, and if not, what is missing? Cheap questions first.

    driver_is_here()    files that NVIDIA's driver leaves: some microseconds, so that a machine without one pays nothing
    driver_version()    the driver's library, which needs no device: which CUDA it knows
    open_cupy()         CuPy, 0.2 to 0.4 s, and a device

Each obstacle is one line that says what to do. A wheel of CuPy belongs to a major version of CUDA: one for 12 runs on a
driver for 12 and on later ones, one for 13 needs a driver for 13. Which of them is installed, nothing else here asks.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

TRACES = "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"  # Linux, and Linux on Windows
LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")
OLDEST_CUPY = 14, 2
OLDEST_DEVICE = 80  # bfloat16 on tensor cores: compute capability 8.0, Ampere


class NoGpu(ValueError):
    """The line that says why the cuda backend cannot run here, and what to do."""


def driver_is_here() -> bool:
    """Whether a driver of NVIDIA seems to be installed. False is certain, True a guess."""
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", "C:/Windows"), "System32", "nvcuda.dll").exists()
    return any(Path(trace).exists() for trace in TRACES)


def driver_version() -> tuple[int, int] | None:
    """The CUDA that the driver knows, as (12, 4); None without a driver."""
    for name in LIBRARIES:
        try:
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0:
                return version.value // 1000, version.value % 1000 // 10
        except (OSError, AttributeError):
            continue
    return None


def extra(driver: tuple[int, int] | None) -> str:
    """The extra of this package for that driver.

    >>> extra((12, 4)), extra((13, 1)), extra(None)
    ('cuda12', 'cuda13', 'cuda12')
    """
    return "cuda13" if driver and driver >= (13, 0) else "cuda12"


def pip_line(driver: tuple[int, int] | None) -> str:
    """
    >>> pip_line((12, 4))
    "pip install 'tinyqwen[cuda12]'"
    """
    return f"pip install 'tinyqwen[{extra(driver)}]'"


@functools.cache
def wheels() -> dict[str, str]:
    """The distributions of CuPy that are installed, and their versions."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if re.fullmatch(r"cupy(-cuda\d+x|-rocm.*)?", name):
            found[name] = distribution.version
    return found


def too_many(installed: dict[str, str], driver: tuple[int, int] | None) -> str | None:
    """What to do about several wheels of CuPy, which are one folder that each has written over.

    >>> too_many({"cupy-cuda12x": "14.2.0"}, (13, 0)) is None
    True
    """
    if len(installed) < 2:
        return None
    names = " ".join(sorted(installed))
    return f"several CuPys are installed and spoil each other; pip uninstall -y {names}; then {pip_line(driver)}"


def obstacle(driver: tuple[int, int] | None, installed: dict[str, str]) -> str | None:
    """What stands in the way, as far as it can be told without importing CuPy.

    >>> obstacle(None, {})
    'no NVIDIA driver: the cuda backend needs an NVIDIA GPU and its driver; --backend cpu needs neither'
    >>> obstacle((12, 4), {})
    "CuPy is not installed; for this driver (CUDA 12.4): pip install 'tinyqwen[cuda12]'"
    >>> obstacle((12, 4), {"cupy-cuda13x": "14.2.0"})[:67]
    'cupy-cuda13x needs a driver for CUDA 13, and this one knows CUDA 12'
    """
    if driver is None:
        return "no NVIDIA driver: the cuda backend needs an NVIDIA GPU and its driver; --backend cpu needs neither"
    said, line = f"CUDA {driver[0]}.{driver[1]}", pip_line(driver)
    if not installed:
        return f"CuPy is not installed; for this driver ({said}): {line}"
    if several := too_many(installed, driver):
        return several
    ((name, version),) = installed.items()
    made_for = re.search(r"cuda(\d+)x", name)
    if made_for and int(made_for[1]) > driver[0]:
        return (
            f"{name} needs a driver for CUDA {made_for[1]}, and this one knows {said}; pip uninstall -y {name}; "
            f"then {line}; or install a newer driver"
        )
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_CUPY:
        return f"{name} is {version}, and {'.'.join(map(str, OLDEST_CUPY))} is needed; {line} --upgrade"
    return None


def open_cupy() -> Any:
    """CuPy, on a device that can be used. Errors: NoGpu."""
    driver = driver_version()
    if why := obstacle(driver, wheels()):
        raise NoGpu(why)
    try:
        cupy = importlib.import_module("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # whatever a broken installation or driver makes of it
        line = " ".join(str(error).split())[:200]
        raise NoGpu(f"CuPy does not start ({line}); python -m tinyqwen doctor shows what is installed") from None
    if not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoGpu("no GPU" + (f" is left by CUDA_VISIBLE_DEVICES={hidden!r}" if hidden is not None else " was found"))
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST_DEVICE:
        raise NoGpu(
            f"this GPU has compute capability {capability / 10}, and the kernels need 8.0 (Ampere, 2020) or more"
        )
    return cupy
