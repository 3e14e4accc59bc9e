"""`take_rows`: rows of a quantised or packed matrix as float32, which is how a token gets its embedding.

Bytes that must move: 1 KB of the table for a token, four at a time from 224 places. What counts besides is the call, 20
steps of NumPy in the definition; for many tokens at once those are the faster way.

                              1 token    ... in a decoding step    512 tokens     (D = 896, int8; microseconds)
    v1  the definition             16                       200          1036
    v2  a kernel                    8                       130          1424
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, kernel
from backends.cpu.packed_vector import unpack
from backends.cpu.rows import F32
from backends.cpu.simd import LANES, load, load_one, store, store_part
from backends.packed import Packed
from backends.quantised import GROUP, Quantised

FEW = 32  # tokens


def take_rows(backend, table_ND, row_T):
    if not isinstance(table_ND, (Quantised, Packed)) or len(row_T) > FEW:
        return NotImplemented
    row_T = np.asarray(row_T)
    if row_T.size and not 0 <= row_T.min() <= row_T.max() < len(table_ND):
        return NotImplemented  # the definition knows what to say
    out_TD = np.empty((len(row_T), table_ND.shape[1]), F32)
    if isinstance(table_ND, Packed):
        unpack_rows(table_ND.as_kernels_take, row_T, out_TD)
        return out_TD
    widen_rows(table_ND.lanes[0], table_ND.lanes[1], table_ND.bits, row_T, out_TD)
    return out_TD


@kernel
@allocating
def unpack_rows(weight, row_T, out_TD):
    pairs_j = np.empty(out_TD.shape[1] // 2, np.int32)
    for t in range(row_T.size):
        unpack(weight, row_T[t], pairs_j)
        for d in range(0, out_TD.shape[1], LANES):
            store(out_TD, (t, d), load(pairs_j.view(np.uint16), d))


@kernel
@allocating
def widen_rows(values_PQr, scales_PGr, bits, row_T, out_TD):
    """A lane holds columns 0 1 2 3 from the right; in int4 its bytes' halves are 0|4 1|5 2|6 3|7."""
    many, mask, zero = 32 // bits, (1 << bits) - 1, 1 << bits - 1
    scale = np.empty(1, np.float32)
    for t in range(row_T.size):
        p, r = row_T[t] // LANES, row_T[t] % LANES
        for d in range(out_TD.shape[1]):
            if d % GROUP == 0:
                store_part(scale, 0, load_one(scales_PGr, (p, d // GROUP, r)), 1)
            n = d % many
            place = 8 * n if bits == 8 else 8 * (n % 4) + 4 * (n // 4)
            whole = (np.int64(values_PQr[p, d // many, r]) >> place & mask) - zero
            out_TD[t, d] = scale[0] * np.float32(whole)
