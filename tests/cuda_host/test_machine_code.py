"""Every kernel becomes machine code for each generation of GPUs, and keeps what it works on in registers.

`python -m tests.cuda_host.test_machine_code` prints the table.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest

from backends.cuda import OPTIONS, source
from backends.cuda.decoder_layer import LARGEST
from tests.cuda_host.nvrtc import ARCHITECTURES, compiled, library

pytestmark = pytest.mark.skipif(library() is None, reason="NVRTC is not installed: pip install 'tinyqwen[test]'")

# How many threads a block has at most, so how many registers each may have: 65536 in a multiprocessor.
THREADS = {"rms_norm_kernel": 1024, "sample_kernel": 1024}
STATIC_LIMIT = 48 << 10  # bytes of shared memory that a block gets without being asked
# Registers, where they limit how many blocks run side by side (see the table in matrix.cuh); a change that needs more
# should be meant.
MOST = {
    "linear_kernel": 64, "linear_few_rows_kernel": 80, "linear_tokens_kernel": 160, "norm_qkv_kernel": 120,
    "norm_gate_up_kernel": 120, "attention_kernel": 255, "attention_prompt_kernel": 255,
    "experts_gate_up_kernel": 128, "experts_down_kernel": 128,
}  # fmt: skip


@cache
def table(architecture: str) -> dict:
    return {
        kernel: taken
        for stem in source.stems()
        for kernel, taken in compiled(source.program(stem), architecture).items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_nothing_spills(architecture):
    kernels = table(architecture)
    assert set(kernels) == set(source.KERNELS)
    for name, taken in kernels.items():
        threads = THREADS.get(name, 256)
        assert taken.spilled == 0, f"{name}: {taken.spilled} bytes of registers do not fit"
        assert taken.registers <= MOST.get(name, 64), f"{name}: {taken.registers} registers"
        assert taken.registers * threads <= 65536, f"{name}: no multiprocessor can hold a block"
        assert taken.shared <= STATIC_LIMIT, f"{name}: {taken.shared} bytes of shared memory"


@pytest.mark.parametrize("KEY_LANES", [8, 16, 32])
@pytest.mark.parametrize("KEY_FORMAT", [0, 1, 2], ids=["f32", "bf16", "int8"])
def test_attention_in_every_format_and_width(KEY_FORMAT, KEY_LANES):
    for KEY_WHOLE in (1, 0) if KEY_LANES == 32 else (1,):
        text = source.program("attention", KEY_FORMAT=KEY_FORMAT, KEY_LANES=KEY_LANES, KEY_WHOLE=KEY_WHOLE)
        assert compiled(text, "sm_90")["attention_kernel"].spilled == 0


def test_a_token_in_shared_memory_fits_beside_what_the_kernel_has_itself():
    """A block gets 48 KB without being asked, both kinds together; on the host nobody counts them together."""
    for name in ("norm_qkv_kernel", "norm_gate_up_kernel"):
        assert 4 * LARGEST + table("sm_90")[name].shared <= STATIC_LIMIT


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.parametrize("stem", ["rms_norm", "attention_prompt"])
def test_with_the_options_that_cupy_adds_itself(stem):
    """Its own headers come first, and it flushes what is nearly zero. Private names: another CuPy may have others."""
    from cupy._core import core
    from cupy.cuda import compiler

    options = (*core.assemble_cupy_compiler_options(OPTIONS), "-ftz=true", "-arch=sm_90")
    program = compiler._NVRTCProgram(source.program(stem), f"{stem}.cu", method="cubin", name_expressions=None)
    code, _ = program.compile(options)
    assert code[:4] == b"\x7fELF"


def main() -> None:
    print(f"{'kernel':28}" + "".join(f"{a:>16}" for a in ARCHITECTURES) + "     registers, shared bytes")
    for name in sorted(source.KERNELS):
        cells = [table(architecture)[name] for architecture in ARCHITECTURES]
        print(f"{name:28}" + "".join(f"{f'{c.registers}, {c.shared}':>16}" for c in cells))


if __name__ == "__main__":
    main()
