"""The order of 150,000 logits, for top-p without top-k: of equals, the lower place first.

A sort by comparisons takes some 17 looks at each number, most of them far apart in memory. A radix sort takes three: it
reads each float as a whole number and deals the numbers out by their lowest 11 bits, then by the next 11, then by the
highest 10. Each round keeps the order of the one before, and equals keep theirs.

    v0  NumPy                 17.0 ms     stable argsort
    v1  NumPy on 64 bits       7.5 ms     the logit's bits above its place, so that the plain sort is stable
    v2  radix sort             2.1 ms     plain loops
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, kernel
from backends.cpu.rows import plain

FEW = 1024  # below, NumPy's sort takes microseconds
DIGIT = 2048


def by_likelihood(backend, logits_N):
    if len(logits_N) < FEW:
        return logits_N.argsort(kind="stable")
    logits_N = plain(logits_N)
    return sorted_places(logits_N, logits_N.view(np.uint32))


@kernel
@allocating
def sorted_places(logits_N, bits_N):
    N = logits_N.size
    key_N = np.empty(N, np.uint32)
    for n in range(N):
        key_N[n] = key_of(logits_N[n], bits_N[n])
    place_N = np.arange(N)
    for shift in (0, 11, 22):
        start_B = np.zeros(DIGIT + 1, np.intp)
        for key in key_N:
            start_B[((key >> shift) & (DIGIT - 1)) + 1] += 1
        for digit in range(DIGIT):
            start_B[digit + 1] += start_B[digit]
        next_key_N, next_place_N = np.empty_like(key_N), np.empty_like(place_N)
        for n in range(N):
            digit = (key_N[n] >> shift) & (DIGIT - 1)
            next_key_N[start_B[digit]], next_place_N[start_B[digit]] = key_N[n], place_N[n]
            start_B[digit] += 1
        key_N, place_N = next_key_N, next_place_N
    return place_N


@kernel
def key_of(logit, bits):
    """A whole number without sign in the order of the floats. NaN comes last; -0 is not below 0 and gets its key."""
    if logit != logit:
        return np.uint32(0xFFFFFFFF)
    return np.uint32(~bits) if logit < 0 else np.uint32(bits | 0x80000000)
