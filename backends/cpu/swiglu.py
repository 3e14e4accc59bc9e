"""SwiGLU: out = gate / (1 + exp(-gate)) * up, element by element.

Bytes that must move: 12 an element. exp makes it 25 instructions for 16 elements, so memory and arithmetic are about
even on one core.

                              1 token    512 tokens     (F = 4864; microseconds, the call included)
    v0  NumPy                     9.2         6,400     three passes over memory
    v1  plain loop                 12         6,100     math.exp, one number at a time
    v2  vectors                   1.6           800     our exp of 16 numbers at once
    v3  rows over threads                       470
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import kernel
from backends.cpu.exp import exp
from backends.cpu.rows import F32, SHARED, plain
from backends.cpu.simd import load, load_part, ones, store, store_part, zeros
from backends.cpu.team import shared


def swiglu(backend, gate_TF, up_TF):
    gate_TF, up_TF = plain(gate_TF), plain(up_TF)
    out_TF = np.empty(gate_TF.shape, F32)
    if gate_TF.size < SHARED:
        swiglu_rows(0, len(gate_TF), gate_TF, up_TF, out_TF)
    else:
        swiglu_rows_shared(len(gate_TF), gate_TF, up_TF, out_TF)
    return out_TF


@kernel
def swiglu_rows(first, last, gate_TF, up_TF, out_TF):
    F = gate_TF.shape[1]
    whole = F - F % 16
    for t in range(first, last):
        for f in range(0, whole, 16):
            store(out_TF, (t, f), gated(load(gate_TF, (t, f)), load(up_TF, (t, f))))
        if whole < F:
            gate, up = load_part(gate_TF, (t, whole), F - whole), load_part(up_TF, (t, whole), F - whole)
            store_part(out_TF, (t, whole), gated(gate, up), F - whole)


@kernel
def gated(gate, up):
    return gate / (ones() + exp(zeros() - gate)) * up


swiglu_rows_shared = shared(swiglu_rows)


def swiglu_gradient(backend, d_out_TF, gate_TF, up_TF):
    """Three arrays read and two written: 20 bytes an element. The sigmoid is computed again."""
    d_out_TF, gate_TF, up_TF = plain(d_out_TF), plain(gate_TF), plain(up_TF)
    d_gate_TF, d_up_TF = np.empty(gate_TF.shape, F32), np.empty(gate_TF.shape, F32)
    if gate_TF.size < SHARED:
        gradient_rows(0, len(gate_TF), d_out_TF, gate_TF, up_TF, d_gate_TF, d_up_TF)
    else:
        gradient_rows_shared(len(gate_TF), d_out_TF, gate_TF, up_TF, d_gate_TF, d_up_TF)
    return d_gate_TF, d_up_TF


@kernel
def gradient_rows(first, last, d_out_TF, gate_TF, up_TF, d_gate_TF, d_up_TF):
    F = gate_TF.shape[1]
    for t in range(first, last):
        for f in range(0, F, 16):
            gate, up = load_part(gate_TF, (t, f), F - f), load_part(up_TF, (t, f), F - f)
            d_out = load_part(d_out_TF, (t, f), F - f)
            sigmoid = ones() / (ones() + exp(zeros() - gate))
            silu = gate * sigmoid
            store_part(d_up_TF, (t, f), d_out * silu, F - f)
            store_part(d_gate_TF, (t, f), d_out * up * (sigmoid + silu * (ones() - sigmoid)), F - f)


gradient_rows_shared = shared(gradient_rows)
