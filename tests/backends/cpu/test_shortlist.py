"""The shortlist's kernels: bounds hold, logits are those of `linear` to the last bit, and the token is the same."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import Wrapper
from backends.cpu.features import detected
from backends.cpu.packing import Packing
from backends.cpu.sketching import drawn
from backends.quantised import ROWS, quantise
from backends.sketch import sketch_of
from tests.helpers import normal
from tinyqwen.blocks.linear import linear
from tinyqwen.sampling import Sampling, sample
from tinyqwen.shortlist import (
    AT_FIRST,
    ids_of,
    penalised,
    sample_shortlisted,
    shortlist,
    tile_bounds,
    tile_logits,
)  # fmt: skip

pytestmark = pytest.mark.skipif("vnni" not in detected(), reason="sketches are read by VNNI's products")


class Poisoned(type(backends.get("cpu"))):
    """Fresh memory is no number, or a result that nobody wrote could be the right one of the call before."""

    def empty(self, shape, dtype=None):
        return np.full(shape, np.nan, np.float32) if dtype is None else np.full(shape, -1, dtype)


CPU = Poisoned()
SEED = st.integers(0, 2**32 - 1)
NOBODY = np.array([], int)


def packed(weight_OI):
    packing = Packing(weight_OI.shape)
    packing.add(0, weight_OI.astype(ml_dtypes.bfloat16))
    return packing.end()


FORMATS = {
    "f32": lambda weight_OI: weight_OI,
    "bf16": lambda weight_OI: weight_OI.astype(ml_dtypes.bfloat16),
    "packed": packed,
    "int8": lambda weight_OI: quantise(weight_OI, 8),
    "int4": lambda weight_OI: quantise(weight_OI, 4),
}
every_format = pytest.mark.parametrize("format", FORMATS)


def head_of(format, seed, V, D, copies=0):
    """A head in that format; some of its rows stand there twice, so that logits are equal."""
    weight_VD = normal(seed, V, D)
    places = np.random.default_rng(seed).integers(0, V, (copies, 2))
    weight_VD[places[:, 0]] = weight_VD[places[:, 1]]
    if format == "packed" and ("bf16" not in detected() or D % 128):
        pytest.skip("packed matrices have whole blocks, and are for processors that multiply bf16")
    return FORMATS[format](weight_VD)


@given(SEED, st.integers(1, 200), st.integers(1, 100), st.sampled_from([1e-3, 1.0, 30.0]))
def test_bounds_hold_and_are_little_more_than_the_definitions(seed, V, D, scale):
    weight_VD, x_1D = normal(seed, V, D), normal(seed + 1, 1, D) * np.float32(scale)
    found_P, defined_P = (tile_bounds(each, x_1D, sketch_of(weight_VD)) for each in (CPU, backends.get("numpy")))
    assert found_P.shape == defined_P.shape == (-(-V // ROWS),)
    longest = np.linalg.norm(weight_VD, axis=1).max() * np.linalg.norm(x_1D)
    for p, bound in enumerate(found_P):
        assert (weight_VD[p * ROWS : (p + 1) * ROWS].astype(np.float64) @ x_1D[0] <= bound).all()
    # Twice what rounding x to 8 bits of each group's largest can lose, and float32's roundings. A tile that is not full
    # has rows of zeros here.
    full = found_P[: V // ROWS] - defined_P[: V // ROWS]
    assert np.abs(full).max(initial=0) <= (2 * 0.5 / 127 * np.sqrt(32) + 1e-4) * longest


@every_format
@pytest.mark.parametrize("V", [1, 16, 100, 1000])
@pytest.mark.parametrize("D", [128, 45, 6272])  # the last is wide: packed rows of it are taken in pieces
def test_logits_of_tiles_are_those_of_the_whole_head(format, V, D):
    if D > 1000 and V > 100:
        pytest.skip("the same again, larger")
    head_VD, x_1D = head_of(format, 0, V, D), normal(1, 1, D)
    logits_V = linear(CPU, x_1D, head_VD)[0]
    tiles = -(-V // ROWS)
    for tile_N in (np.arange(tiles), np.arange(tiles)[::-3], np.array([tiles - 1]), NOBODY):
        found_N = tile_logits(CPU, x_1D, head_VD, tile_N)
        np.testing.assert_array_equal(found_N, logits_V[ids_of(tile_N, V)], strict=True)


settings = st.builds(
    Sampling,
    do_sample=st.booleans(),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([1, 5, 20, 64]),
    top_p=st.sampled_from([0.3, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 3.0]),
)


@every_format
@given(SEED, st.sampled_from([1, 30, 500, 3001]), settings, st.floats(0, 1, exclude_max=True), st.integers(0, 3))
def test_the_token_is_the_one_that_all_logits_choose(format, seed, V, sampling, uniform, copies):
    """Also among equals, and where penalties turn the order around."""
    head_VD = head_of(format, seed % 5, V, 128, copies=copies * V // 10)
    x_1D, vocabulary = normal(seed, 1, 128), max(1, V - seed % 40)
    seen_N = np.unique(np.random.default_rng(seed).integers(0, V, seed % 60))
    seen_N = seen_N[seen_N < vocabulary]
    logits_V = linear(CPU, x_1D, head_VD)[0, :vocabulary]
    expected = sample(CPU, logits_V, seen_N, sampling=sampling, uniform=uniform)
    arrays = x_1D, head_VD, drawn(head_VD), seen_N
    for backend in (CPU, Wrapper(CPU)):  # whoever watches sees the steps
        found = sample_shortlisted(backend, *arrays, sampling=sampling, uniform=uniform, vocabulary=vocabulary)
        assert found == expected


@given(SEED, st.sampled_from([1, 16, 700]), st.integers(1, 64), st.sampled_from([1.0, 1.5]))
def test_the_shortlist_holds_the_k_likeliest_and_their_ties(seed, V, k, penalty):
    head_VD, x_1D = head_of("int8", seed % 7, V, 64, copies=V // 4), normal(seed, 1, 64)
    seen_N = np.arange(0, V, 3)
    logits_V = linear(CPU, x_1D, head_VD)[0]
    fair_V = penalised(CPU, logits_V, seen_N, penalty)
    wanted_N = np.flatnonzero(fair_V >= np.sort(fair_V)[-min(k, V)])
    at_first = min(AT_FIRST + k, -(-V // ROWS))
    kept = dict(k=k, at_first=at_first, penalty=penalty, vocabulary=V)
    for backend in (CPU, Wrapper(CPU)):
        id_N, logits_N = shortlist(backend, x_1D, head_VD, drawn(head_VD), seen_N, **kept)
        assert np.isin(wanted_N, id_N).all() and (np.diff(id_N) > 0).all()
        np.testing.assert_array_equal(logits_N, logits_V[id_N], strict=True)


def test_few_of_many_are_on_it():
    head_VD, x_1D = head_of("int8", 0, 20_000, 128), normal(3, 1, 128)
    kept = dict(k=1, at_first=AT_FIRST, penalty=1.0, vocabulary=20_000)
    id_N, _ = shortlist(CPU, x_1D, head_VD, drawn(head_VD), NOBODY, **kept)
    assert len(id_N) < 2_000  # of Gaussian rows; 68 tiles when this was written


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_chooses_nothing(bad):
    head_VD, x_1D = head_of("int8", 0, 100, 64), normal(3, 1, 64)
    sketch, x_1D[0, 7] = drawn(head_VD), bad
    for backend in (CPU, Wrapper(CPU)):
        with np.errstate(all="ignore"):
            found = sample_shortlisted(backend, x_1D, head_VD, sketch, NOBODY, sampling=Sampling(), uniform=0.0,
                                       vocabulary=100)  # fmt: skip
        assert found is None


def test_the_same_bits_with_any_number_of_threads():
    head_VD, x_1D = head_of("int8", 0, 5000, 128), normal(3, 1, 128)
    kept = dict(k=20, at_first=AT_FIRST + 20, penalty=1.0, vocabulary=5000)
    sketch = drawn(head_VD)
    first, *others = (
        shortlist(backends.get("cpu", threads=threads), x_1D, head_VD, sketch, NOBODY, **kept) for threads in (1, 2)
    )
    for other in others:
        for one, two in zip(first, other):
            np.testing.assert_array_equal(one, two)


def test_a_processor_without_vnni_runs_the_definition():
    generic = backends.get("cpu", features=())
    head_VD, x_1D = head_of("int8", 0, 500, 64), normal(3, 1, 64)
    kept = dict(sampling=dataclasses.replace(Sampling(), do_sample=True, top_k=5), uniform=0.4, vocabulary=500)
    arrays = x_1D, head_VD, drawn(head_VD), NOBODY
    assert sample_shortlisted(generic, *arrays, **kept) == sample_shortlisted(CPU, *arrays, **kept)
