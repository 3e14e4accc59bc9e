"""The fast CPU program: Numba kernels with explicit SIMD, one file per operation, named as its definition.

`simd` is the language that kernels are written in, `compiling.py` how they become machine code and stay it,
`team.py` and `threads.py` who runs them, `features.py` what the processor can do. A body is a Python function of its
definition's signature that makes room for the result and calls kernels. What has no body here runs its definition, as
the residual add does: NumPy's is as fast, and calling ours would take longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from backends.cpu.adam import adam
from backends.cpu.attention import attention_for
from backends.cpu.attention_gradient import attention_gradient
from backends.cpu.attention_part import attention_part_for
from backends.cpu.by_likelihood import by_likelihood
from backends.cpu.decoder_layer import decoder_layers_for
from backends.cpu.experts import experts
from backends.cpu.features import detected
from backends.cpu.likeliest import likeliest
from backends.cpu.linear import linear_for
from backends.cpu.linear_gradient import linear_gradient
from backends.cpu.log_probability import log_probability, log_probability_gradient
from backends.cpu.merge_parts import merge_parts
from backends.cpu.rms_norm import rms_norm, rms_norm_gradient
from backends.cpu.rope import rope
from backends.cpu.route import route
from backends.cpu.shortlist import shortlist_for
from backends.cpu.sigmoid_gate import sigmoid_gate
from backends.cpu.swiglu import swiglu, swiglu_gradient
from backends.cpu.take_rows import take_rows
from backends.cpu.take_rows_gradient import take_rows_gradient
from backends.cpu.team import CALLER, use
from backends.cpu.threads import most_threads, usable_cores
from backends.cpu.tile_bounds import tile_bounds_for
from backends.cpu.tile_logits import tile_logits_for
from backends.cpu.update_cache import update_cache
from backends.interface import Backend, Operation
from backends.large_pages import LARGE, block


def bodies_for(features: frozenset[str]) -> dict[str, Callable]:
    """Every body, by the name of its operation."""
    made = attention_for(features), attention_part_for(features), *decoder_layers_for(features), linear_for(features)
    head = shortlist_for(features), tile_bounds_for(features), tile_logits_for(features)
    there = (
        by_likelihood, experts, likeliest, merge_parts, rms_norm, rope, route, sigmoid_gate, swiglu, take_rows,
        update_cache,
    )  # fmt: skip
    back = attention_gradient, linear_gradient, log_probability_gradient, rms_norm_gradient, swiglu_gradient
    bodies = *made, *head, *there, *back, take_rows_gradient, log_probability, adam
    return {body.__name__: body for body in bodies}


class Cpu(Backend):
    """NumPy arrays in float32, and compiled bodies.

    features   what the processor may be asked to do, of those of `features.py`; None: all that it can
    threads    how many run a kernel; None: the cores that this process may use

    >>> import backends; cpu = backends.get("cpu", threads=1)
    >>> cpu, sorted(cpu.bodies)[:3]
    (<backend cpu: float32, 1 thread>, ['adam', 'attention', 'attention_gradient'])

    Errors: ValueError for features that this processor lacks, and for more threads than it has cores.
    """

    name = "cpu"
    dtypes = (np.float32,)

    def __init__(self, features: Iterable[str] | None = None, threads: int | None = None):
        self.features = detected() if features is None else frozenset(features)
        self.threads = usable_cores() if threads is None else threads
        if self.features - detected():
            raise ValueError(f"this processor has no {', '.join(sorted(self.features - detected()))}")
        if not 1 <= self.threads <= most_threads():
            raise ValueError(f"threads must be from 1 to {most_threads()}, the cores of this machine, is {threads}")
        super().__init__(np, bodies_for(self.features))

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        if CALLER.threads != self.threads:
            use(self.threads)
        return super().run(operation, arrays, settings, door)

    def empty(self, shape: tuple[int, ...], dtype=None):
        """As NumPy's, in large pages if it fills one: decoding reads a cache of 8192 tokens a quarter faster then."""
        dtype = np.dtype(dtype or self.dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        return np.empty(shape, dtype) if nbytes < LARGE else block(nbytes).view(dtype).reshape(shape)

    def __repr__(self):
        return f"<backend cpu: float32, {self.threads} thread{'s' * (self.threads > 1)}>"
