"""A product of many tokens: cuBLAS, bfloat16 in, float32 sums and out.

    out[t, o] = sum over i of x[t, i] * weight[o, i]

A prompt uses each weight so often that the tensor cores' arithmetic is the limit, and there NVIDIA's own library is
hard to beat. It thinks in columns: our rows of weight are columns of a matrix [I, O], and what it writes as columns
[O, T] are our rows. CuPy's own product would round the result to bfloat16; so it is called by its C name.
"""

from __future__ import annotations

import numpy as np

# Names of cublas_api.h and library_types.h
PLAIN, TURNED = 0, 1
BF16, F32 = 14, 0
COMPUTE_F32, BEST = 68, -1


def product(xp, x_TI, weight_OI, out_TO) -> None:
    """x and weight in bfloat16, out in float32, each in one piece."""
    if hasattr(xp, "product"):  # the stand-in for CuPy
        return xp.product(x_TI, weight_OI, out_TO)
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    (T, I), O = x_TI.shape, weight_OI.shape[0]  # noqa: E741
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    cublas.gemmEx(
        device.get_cublas_handle(), TURNED, PLAIN, O, T, I,
        one.ctypes.data, weight_OI.data.ptr, BF16, I, x_TI.data.ptr, BF16, I,
        zero.ctypes.data, out_TO.data.ptr, F32, O, COMPUTE_F32, BEST,
    )  # fmt: skip
