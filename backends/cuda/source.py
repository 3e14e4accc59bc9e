"""The text of the kernels: files joined, `#line` before each, so that a compiler's message names the right one.

Nothing is `#include`d but NVIDIA's cuda_bf16.h: CuPy keeps compiled kernels by the text that it was given, and would
run yesterday's machine code after a change in an included file. The same text goes to NVRTC for a GPU and, in the
tests, to g++ for this processor.
"""

from __future__ import annotations

import functools
import importlib.resources
import re

HEADERS = ("ptx.cuh", "numbers.cuh", "matrix.cuh")  # in this order, before every .cu
# Constants that a file must have; these are those of the 0.5B with a bfloat16 cache.
CONSTANTS = {"attention": {"KEY_FORMAT": 1, "KEY_LANES": 8, "KEY_WHOLE": 1}}
KERNEL = re.compile(r'extern "C" __global__ (?:__launch_bounds__\([^)]*\) )?void (\w+)\(')


def read(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def stems() -> tuple[str, ...]:
    """The .cu files, without their ending."""
    names = [file.name for file in importlib.resources.files(__package__).iterdir()]
    return tuple(sorted(name.removesuffix(".cu") for name in names if name.endswith(".cu")))


def program(stem: str, **constants: int) -> str:
    """The text of one `.cu` file with all that it needs before it.

    constants   become constexpr ints: a compiler unrolls loops whose lengths it knows; left out, those of `CONSTANTS`

    >>> program("attention", KEY_LANES=16).splitlines()[:2]
    ['constexpr int KEY_FORMAT = 1;', 'constexpr int KEY_LANES = 16;']
    """
    all_constants = {**CONSTANTS.get(stem, {}), **constants}
    lines = [f"constexpr int {name} = {value};" for name, value in all_constants.items()]
    files = [f'#line 1 "{name}"\n{read(name)}' for name in (*HEADERS, f"{stem}.cu")]
    return "\n".join(lines + files)


def kernels(text: str) -> list[str]:
    """The names of the kernels in a text.

    >>> kernels(read("rms_norm.cu"))
    ['rms_norm_kernel']
    """
    return KERNEL.findall(text)


def found() -> dict[str, str]:
    """Each kernel's file, by the kernel's name."""
    return {kernel: stem for stem in stems() for kernel in kernels(read(f"{stem}.cu"))}


KERNELS: dict[str, str] = found()
