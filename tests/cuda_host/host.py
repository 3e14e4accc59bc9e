"""CUDA sources, built by the C++ compiler and run on this processor, as if there were a GPU.

    Module(text).get_function("rms_norm_kernel")(grid, block, arguments, shared_mem=0)      as cupy.RawModule

The text is the one that a GPU's compiler gets. What is checked besides the numbers: the size of each argument (CuPy
passes a Python float as eight bytes, and a kernel that wants four gets garbage), whether arrays lie in one piece, that
no thread waits for ever, and, with the sanitizers, races and accesses beyond an array's end.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

from backends.cuda.source import kernels

HERE = Path(__file__).parent
CACHE = Path(
    os.environ.get("TINYQWEN_CUDA_HOST_CACHE", Path(tempfile.gettempdir()) / f"tinyqwen-cuda-host-{os.getuid()}")
)
PARAMETERS = 4096  # bytes of a kernel's; newer drivers take 32,764
ORDERS = {"ascending": 0, "descending": 1, "random": 20261121}
OUTCOMES = {1: "threads wait for each other, and none can go on", 2: "a thread ended before a barrier of its block"}

# Without gnu-unique, each library has shared memory of its own; with it, all would use that of the first one loaded.
ALWAYS = ["-std=c++17", "-w", "-pthread", "-fPIC", "-shared", "-ffp-contract=off", "-fno-gnu-unique"]
# How a text is built: the engine, and what the compiler is told besides.
KINDS = {
    "fibers": ("fibers.h", ["-O2"]),
    "races": ("threads.h", ["-O1", "-g", "-fsanitize=thread"]),
    "bounds": ("fibers.h", ["-O1", "-g", "-fsanitize=address", "-DPORTABLE_SWITCH"]),
}


@functools.cache
def header_folders() -> tuple[str, ...]:
    """Where cuda_bf16.h is, and what it needs: NVIDIA's wheels, or a toolkit. Empty if there is none."""
    wheels = Path(sysconfig.get_paths()["purelib"], "nvidia")
    places = [
        [wheels / name / "include" for name in ("cuda_runtime", "cuda_nvcc", "cuda_cccl")],
        [wheels / "cu13/include", wheels / "cu13/include/cccl"],
        [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include") / name for name in (".", "cccl")],
    ]
    for folders in places:
        if (folders[0] / "cuda_bf16.h").exists() and any((folder / "nv/target").exists() for folder in folders):
            return tuple(str(folder) for folder in folders)
    return ()


def missing() -> str:
    """What keeps kernels from being built here, in a line; empty if nothing does."""
    if not shutil.which("g++"):
        return "g++ is not installed"
    if not header_folders():
        return "no CUDA headers: pip install 'tinyqwen[test]', which brings NVIDIA's, or install a CUDA toolkit"
    return ""


def built(text: str, kind: str = "fibers") -> Path:
    """The library with these kernels; kept by what it was made of, so that it is built once."""
    engine, flags = KINDS[kind]
    headers = "".join((HERE / name).read_text() for name in ("cuda_host.h", engine))
    whole = f'#include "{engine}"\n{text}\n' + "".join(f"EXPORT({name})\n" for name in kernels(text))
    if kind == "races":  # there, shared memory is `static`, which does not go with `extern`
        whole = whole.replace("extern __shared__", "extern")
    digest = hashlib.sha256("\0".join([whole, headers, *ALWAYS, *flags, *header_folders()]).encode()).hexdigest()[:24]
    library = CACHE / f"{digest}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            source, result = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
            source.write_text(whole)
            includes = [f"-I{folder}" for folder in (HERE, *header_folders())]
            done = subprocess.run(
                ["g++", *ALWAYS, *flags, *includes, str(source), "-o", str(result)], capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"g++ refuses the kernels:\n{done.stderr[:4000]}")
            result.rename(library)
    return library


class Module:
    """The kernels of a text. `order` says in which order threads run: a name of `ORDERS`, or a seed."""

    def __init__(self, text: str, kind: str | None = None):
        self.library = ctypes.CDLL(str(built(text, kind or os.environ.get("TINYQWEN_CUDA_HOST_KIND", "fibers"))))
        self.order: str | int = "ascending"

    def get_function(self, name: str) -> Kernel:
        return Kernel(self, name)


class Kernel:
    def __init__(self, module: Module, name: str):
        self.module, self.name = module, name
        self.launch = getattr(module.library, f"launch_{name}")
        sizes = (ctypes.c_int * 64)()
        self.sizes = list(sizes[: getattr(module.library, f"sizes_{name}")(sizes)])

    def __call__(self, grid, block, arguments, shared_mem: int = 0) -> None:
        """Run it. Arguments are NumPy arrays, None (a null pointer), structs, and scalars as CuPy would pack them.

        Errors: TypeError for arguments of other sizes than the kernel's parameters and for arrays with gaps,
        RuntimeError for barriers that do not fit and for launches that a GPU would refuse.
        """
        grid, block = (tuple(size) + (1,) * (3 - len(size)) for size in (grid, block))
        if not all(grid) or not all(block) or np.prod(block) > 1024 or shared_mem > 232448:
            raise RuntimeError(f"{self.name}: a GPU refuses grid {grid}, block {block}, {shared_mem} bytes shared")
        packed = [pack(argument) for argument in arguments]
        self.check(arguments, packed)
        pointers = (ctypes.c_void_p * len(packed))(*[argument.ctypes.data for argument in packed])
        order = ORDERS.get(self.module.order, self.module.order)
        sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
        if outcome := self.launch(*sizes, ctypes.c_size_t(shared_mem), ctypes.c_uint(order), pointers):
            raise RuntimeError(f"{self.name}: {OUTCOMES[outcome]}")

    def check(self, arguments, packed) -> None:
        wanted = [abs(size) for size in self.sizes]
        given = [argument.itemsize for argument in packed]
        if given != wanted:
            raise TypeError(f"{self.name}: arguments of {given} bytes; its parameters have {wanted}")
        if sum(given) > PARAMETERS:
            raise TypeError(f"{self.name}: {sum(given)} bytes of arguments; {PARAMETERS} is what every driver takes")
        for n, (argument, size) in enumerate(zip(arguments, self.sizes)):
            if is_struct(argument):
                continue
            address = argument is None or isinstance(argument, (np.ndarray, np.uint64))
            if address != (size == -8) and not isinstance(argument, np.uint64):
                raise TypeError(f"{self.name}: argument {n} is {argument!r}, and should be {'an array' * (size < 0)}")
            if isinstance(argument, np.ndarray) and not argument.flags.c_contiguous:
                raise TypeError(f"{self.name}: argument {n} has gaps: a kernel sees memory, not strides")


def is_struct(argument) -> bool:
    """Whether it is a struct that a kernel takes by value: CuPy passes a NumPy array of one element so."""
    return isinstance(argument, np.ndarray) and argument.dtype.names is not None and argument.ndim == 0


def addresses_in(struct: np.ndarray) -> list[int]:
    """The addresses in a struct: its numbers of type uint64, less null pointers."""
    if struct.dtype.names is not None:
        return [address for name in struct.dtype.names for address in addresses_in(struct[name])]
    return [int(address) for address in struct.ravel() if address] if struct.dtype == np.uint64 else []


def pack(argument) -> np.ndarray:
    """One argument as CuPy would pass it: an array's address, a Python int as 8 bytes, a Python float as 8."""
    if argument is None:
        return np.array([0], np.uint64)
    if is_struct(argument):
        return argument
    if isinstance(argument, np.ndarray):
        return np.array([argument.ctypes.data], np.uint64)
    return np.array([argument])
