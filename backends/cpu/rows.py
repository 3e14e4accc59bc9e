"""What the small operations share: their arrays are float32, and their rows are independent of each other.

At one token such an operation computes for a tenth of a microsecond and costs one: the door, a check of its arrays,
memory for its result, the call. So there is one fast test for what is nearly always true, and a copy for the rest. At
512 tokens it moves megabytes, and threads share the rows.

A row comes out the same, to the last bit, whether one thread calls the kernel or the team does: the compiler changes no
order of additions, which also means that it makes no vectors of a plain loop that sums. Those we write ourselves.
"""

from __future__ import annotations

import numpy as np

F32 = np.dtype(np.float32)
SHARED = 1 << 17  # elements: some 15 us of work for one thread, of which sharing costs one


def plain(array):
    """The array as kernels want it, float32 and end to end. Nearly always it is that already: 0.12 us to see it."""
    if array.dtype is F32 and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array, F32)
