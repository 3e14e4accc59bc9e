"""Parts on the CPU: any stretch of a cache in any format, where it lies, and the merge.

That they equal the formula is held by tests/tinyqwen/blocks/test_attention_parts.py, on every backend.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import Backend
from backends.cpu.rows import SHARED
from backends.cpu.threads import most_threads
from tests.backends.cpu.test_attention import NOISE, draw, run, tolerance
from tests.helpers import assert_close, normal
from tinyqwen.blocks.attention_parts import attention_part, merge_parts
from tinyqwen.blocks.dual_chunk import dual_chunk_attention
from tinyqwen.config import DualChunk
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.step import Span

DOUBLE = Backend(np, dtype=np.float64)
NUMPY = backends.get("numpy")


@pytest.fixture(scope="module", params=["all features", "none"])
def cpu(request):
    """As in test_attention.py."""
    return backends.get("cpu") if request.param == "all features" else backends.get("cpu", features=())


every_format = pytest.mark.parametrize("format", KV_FORMATS)


def expected(q_THK, k_GSK, v_GSK, **settings):
    wide = q_THK.astype(np.float64), k_GSK.astype(np.float64), v_GSK.astype(np.float64)
    return attention_part(DOUBLE, *wide, **settings)


@every_format
@given(
    st.integers(0, 999), st.sampled_from([1, 1, 2, 7, 40]), st.integers(0, 1200), st.integers(-50, 1500),
    st.sampled_from([1, 2, 7, 17]), st.sampled_from([10, 16, 32, 64]), st.none() | st.sampled_from([1, 3, 100, 300]),
)  # fmt: skip
def test_equals_the_definition_in_every_format(cpu, format, seed, T, S, past, R, K, window):
    part = draw(seed, T, S, 2, R, K, format)
    out_THK, lse_TH = attention_part(cpu, *part, past=past, window=window)
    exact_THK, exact_TH = expected(*part, past=past, window=window)
    allowed = tolerance(cpu, format, K)
    assert_close(out_THK, exact_THK, allowed)
    seen_TH = exact_TH > -np.inf
    np.testing.assert_array_equal(lse_TH > -np.inf, seen_TH)
    off, size = np.abs(lse_TH[seen_TH] - exact_TH[seen_TH]).max(initial=0), np.abs(exact_TH[seen_TH]).max(initial=1)
    assert off <= 4 * allowed * size


@every_format
def test_all_keys_at_once_are_attention_to_the_last_bit(cpu, format):
    """The same kernel: whoever has one part pays for no merge and gets no other numbers."""
    for T, S in ((1, 700), (1, 3000), (90, 700)):
        part = draw(0, T, S, 2, 7, 64, format)
        np.testing.assert_array_equal(attention_part(cpu, *part, past=S - T)[0], run(cpu, *part))


@every_format
@pytest.mark.parametrize("T", [1, 60])
def test_stretches_of_a_cache_merge_to_the_whole(cpu, format, T):
    """They begin and end anywhere, and are views: nothing of the cache is copied or turned."""
    q_THK, k_GSK, v_GSK = draw(1, T, 1500, 2, 7, 64, format)
    edges = [0, 1, 33, 700, 1490, 1500]
    parts = [attention_part(cpu, q_THK, k_GSK[:, a:b], v_GSK[:, a:b], past=1500 - T - a) for a, b in pairwise(edges)]
    merged_THK = merge_parts(cpu, *zip(*parts))
    assert_close(merged_THK, run(cpu, q_THK, k_GSK, v_GSK), NOISE if format == "f32" else 3e-3)


@every_format
def test_the_number_of_threads_changes_no_bit(format):
    part = draw(0, 1, 3000, 2, 7, 64, format)
    chunk = DualChunk(1100, 100)

    def everything(threads):
        fast = backends.get("cpu", threads=threads)
        spans = (Span(0, 1, None),)
        return dual_chunk_attention(fast, [part[0]] * 3, [part[1]], [part[2]], spans=spans, chunk=chunk)

    for threads in (2, 2, 2):
        np.testing.assert_array_equal(everything(min(threads, most_threads())), everything(1))


@given(st.integers(0, 999), st.integers(1, 4), st.integers(0, 9), st.integers(1, 5), st.sampled_from([1, 16, 20]))
def test_the_merge_equals_its_definition(seed, count, T, H, K):
    outs, lses = list(normal(seed, count, T, H, K)), list(30 * normal(seed + 1, count, T, H))
    for lse_TH in lses:
        lse_TH[normal(seed + 2, T, H) > 1] = -np.inf
    assert_close(merge_parts(backends.get("cpu"), outs, lses), merge_parts(NUMPY, outs, lses), 1e-6)


def test_the_shared_merge_equals_that_of_one_thread_to_the_last_bit():
    cpu, T = backends.get("cpu"), SHARED // (4 * 64) + 5
    outs, lses = list(normal(0, 3, T, 4, 64)), list(normal(1, 3, T, 4))
    shared_THK = merge_parts(cpu, outs, lses)
    few_THK = merge_parts(cpu, [out[7:12] for out in outs], [lse[7:12] for lse in lses])
    np.testing.assert_array_equal(shared_THK[7:12], few_THK)
