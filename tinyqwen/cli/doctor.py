"""What this machine has, what the program uses of it, and what is missing, with the line that mends it.

tinyqwen doctor
tinyqwen doctor --json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import backends
from backends import nvidia
from backends.cache_folder import cache_folder
from tinyqwen import __version__
from tinyqwen.files import size_in_words
from tinyqwen.memory import available_bytes

PACKAGES = "numpy ml_dtypes safetensors tokenizers huggingface_hub jinja2 rich numba".split()
Facts = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    found = examine()
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0


def examine() -> Facts:
    """All facts, by section."""
    return {"program": program(), "processor": processor(), "memory": memory(), "gpu": gpu(), "verdict": verdict()}


def program() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "tinyqwen": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **versions,
    }


def processor() -> dict[str, Any]:
    from backends.cpu.features import detected
    from backends.cpu.threads import most_threads, usable_cores

    return {
        "name": processor_name(),
        "cores": os.cpu_count(),
        "cores of this process": most_threads(),
        "threads": usable_cores(),
        "caches": caches(),
        "used features": sorted(detected()) or "what every such processor has",
    }


def processor_name() -> str:
    """As Linux calls it; else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, str]:
    """The first core's caches, as {L2: 2048K}; empty where the system does not say."""
    found = {}
    for index in sorted(root.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def memory() -> dict[str, Any]:
    free, folder = available_bytes(), cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "free": None if free is None else size_in_words(free),
        "large pages": large_pages(),
        "cache folder": str(folder),
        "writable": os.access(place, os.W_OK),
        "free on its disk": size_in_words(shutil.disk_usage(place).free),
    }


def large_pages(file: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str:
    """Whether Linux gives pages of 2 MB: always, to who asks (madvise, as this program does), or never."""
    try:
        return file.read_text().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return "unknown"


def gpu() -> dict[str, Any]:
    """Driver, wheels and device; whatever fails on the way is a fact, too."""
    driver, wheels = nvidia.driver_version(), nvidia.wheels()
    found: dict[str, Any] = {
        "driver": f"knows CUDA {driver[0]}.{driver[1]}" if driver else "none",
        "CuPy": ", ".join(f"{name} {version}" for name, version in wheels.items()) or "not installed",
    }
    if several := nvidia.too_many(wheels, driver):
        return found | {"missing": several}
    try:
        cupy = nvidia.open_cupy()
        found |= device(cupy)
    except nvidia.NoGpu as error:
        found["missing"] = str(error)
    return found


def device(cupy: Any) -> dict[str, Any]:
    """What a working CuPy says of its device."""
    runtime = cupy.cuda.runtime
    properties, (free, total) = runtime.getDeviceProperties(0), runtime.memGetInfo()
    name = properties["name"]
    found = {
        "device": name.decode() if isinstance(name, bytes) else name,
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory": f"{size_in_words(free)} of {size_in_words(total)} free",
        "runtime": runtime.runtimeGetVersion(),
    }
    try:
        found["NVRTC"] = ".".join(map(str, importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()))
    except Exception as error:  # its library is a wheel of its own
        found["missing"] = f"NVRTC, which compiles kernels ({' '.join(str(error).split())[:120]}); " + nvidia.pip_line(
            nvidia.driver_version()
        )
    return found


def verdict() -> dict[str, Any]:
    name, why = backends.choose()
    return {"--backend auto": name, **({"because": why} if why else {})}


def show(found: Facts) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)
    for section, facts in found.items():
        console.print(Text(section, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=True)
        for key, value in facts.items():
            words = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            words = ", ".join(words) if isinstance(words, list) else words
            table.add_row(key, Text(str(words), style="red" if key in ("missing", "because") else ""))
        console.print(table)
