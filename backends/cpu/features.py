"""What this processor can do beyond plain vectors, asked at run time.

    bf16   AVX512-BF16: products of bfloat16 pairs, summed in float32
    vnni   AVX512-VNNI: products of short whole numbers, summed in 32 bits

Without them the same kernels widen to float32 and multiply: the same results, slower. `get("cpu", features=())` runs
them so on any machine, and the tests do.
"""

from __future__ import annotations

import functools

from llvmlite import binding

NEEDED = {"bf16": ("avx512f", "avx512bf16"), "vnni": ("avx512f", "avx512bw", "avx512vnni")}


@functools.cache
def detected() -> frozenset[str]:
    """The features of `NEEDED` that this processor has.

    >>> detected() <= set(NEEDED)
    True
    """
    host = binding.get_host_cpu_features()
    return frozenset(name for name, parts in NEEDED.items() if all(host.get(part) for part in parts))
