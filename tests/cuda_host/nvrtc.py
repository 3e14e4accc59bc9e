"""Machine code for GPUs that are not there: NVIDIA's compiler as a library, and its report of what a kernel takes."""

from __future__ import annotations

import ctypes
import functools
import re
import sysconfig
from pathlib import Path
from typing import NamedTuple

from tests.cuda_host.host import header_folders

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")  # A100, H100 and H200, B200, RTX 50
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '\w+'(.*?)(?=Compiling entry function|\Z)", re.S)


class Resources(NamedTuple):
    """What a kernel takes: registers a thread, bytes of shared memory a block, bytes of registers that did not fit."""

    registers: int
    shared: int
    spilled: int


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC, from NVIDIA's wheels or a toolkit; None without."""
    wheels = sorted(
        Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/lib/libnvrtc.so.*"), key=lambda p: len(p.name)
    )
    for place in [*map(str, wheels), "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


def compiled(text: str, architecture: str) -> dict[str, Resources]:
    """The kernels of a text, and what each takes on that architecture.

    Errors: ValueError with the compiler's words.
    """
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc is not None
    options = [f"-arch={architecture}", "-std=c++17", "-ftz=true", "--ptxas-options=-v"]
    options += [f"-I{folder}" for folder in header_folders()]
    listed = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"joined.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), listed)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    report = log.value.decode()
    if failed:
        raise ValueError(report)
    return {name: resources(body) for name, body in ENTRY.findall(report)}


def resources(body: str) -> Resources:
    def number(pattern: str) -> int:
        return sum(int(found) for found in re.findall(pattern, body))

    return Resources(number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes spill"))
