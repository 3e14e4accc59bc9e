"""A sketch bounds every product, whatever the weights are; its definition and its kernel draw the same."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import sketch
from backends.cpu.features import detected
from backends.cpu.packing import Packing
from backends.cpu.sketching import drawn
from backends.quantised import GROUP, quantise
from backends.sketch import LONGEST, SLACK, Z, sketch_of
from tests.helpers import normal

SEED, SHAPE = st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 50), st.integers(1, 300))


def stubborn(rows, columns):
    """Half a step above a whole number of steps, nearly everywhere: rounding errs by as much as it can, one way."""
    weight_OI = np.full((rows, columns), 0.499 / 7, np.float32)
    weight_OI[:, ::GROUP] = 1  # which makes each group's step 1 / 7
    return weight_OI


def matrix(kind, seed, shape):
    weight_OI = normal(seed, *shape)
    if kind == "stubborn":
        return stubborn(*shape)
    if kind == "outliers":
        weight_OI[np.random.default_rng(seed).random(shape) < 0.01] *= 1000
    if kind == "constant":
        weight_OI[:] = weight_OI[:, :1]
    return weight_OI * np.float32({"tiny": 1e-30, "large": 1e6}.get(kind, 1))


def token(kind, seed, columns):
    x_I = normal(seed, columns)
    if kind == "one":
        x_I[:] = np.arange(columns) == seed % columns
    return {"same sign": np.abs(x_I), "ones": np.ones_like(x_I)}.get(kind, x_I)


KINDS = st.sampled_from(["normal", "stubborn", "outliers", "constant", "tiny", "large"])
TOKENS = st.sampled_from(["normal", "same sign", "ones", "one"])


@given(KINDS, TOKENS, SEED, SHAPE)
def test_no_product_reaches_its_bound(kind, token_kind, seed, shape):
    weight_OI, x_I = matrix(kind, seed, shape), token(token_kind, seed + 1, shape[1])
    products_O = weight_OI.astype(np.float64) @ x_I
    bound_O = sketch_of(weight_OI).bounds(x_I)
    assert bound_O.dtype == np.float32 and bound_O.shape == products_O.shape
    assert (products_O <= bound_O).all()


@pytest.mark.parametrize("kind", ["normal", "stubborn", "outliers", "constant"])
def test_errors_scatter_as_the_bound_supposes_whatever_the_weights_are(kind):
    """In units of their standard deviation, which is a Z-th of the bound's second part; each row is a sample."""
    I = 512  # noqa: E741
    x_I, errors, rng = normal(5, I), [], np.random.default_rng(6)
    for seed in range(40):
        rough = sketch_of(matrix(kind, seed, (16, I)))
        weight_OI = matrix(kind, seed, (16, I)).astype(np.float64)
        slack_O = SLACK * np.linalg.norm(weight_OI, axis=1) * np.linalg.norm(x_I)
        step_OI = np.repeat(rough.step_OG.astype(np.float64), GROUP, axis=1)
        spread_O = np.sqrt((step_OI**2 * x_I.astype(np.float64) ** 2 / 12).sum(axis=1))
        middle_O = rough.bounds(x_I) - slack_O - Z * spread_O
        errors.extend(((middle_O - weight_OI @ x_I) / spread_O)[: 1 if kind == "stubborn" else None])
        x_I = rng.permutation(x_I) * rng.choice([-1, 1], I).astype(np.float32)
    assert 0.6 < np.std(errors) < 1.3 and abs(np.mean(errors)) < 0.5  # 40 samples at least; without dither it is 8


def test_it_is_the_dither_that_holds_the_bound(monkeypatch):
    """Without it, the errors of stubborn weights add up to far more than the bound allows."""
    weight_OI, x_I = stubborn(20, 896), np.ones(896, np.float32)
    assert (sketch_of(weight_OI).bounds(x_I) > weight_OI @ x_I).all()
    monkeypatch.setattr(sketch, "dither", lambda columns: np.zeros(columns, np.float32))
    assert (sketch_of(weight_OI).bounds(x_I) < weight_OI @ x_I).all()


def test_a_bound_is_tight_enough_to_be_of_use():
    """Of 4,000 normally distributed products, those of one in fifty rows could be the largest."""
    weight_OI, x_I = normal(0, 4000, 256), normal(1, 256)
    products_O = weight_OI @ x_I
    assert (sketch_of(weight_OI).bounds(x_I) >= products_O.max()).sum() < 80


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "packed"])
@pytest.mark.parametrize("shape", [(1, 128), (40, 256), (1000, 384)])
def test_the_kernel_draws_the_same(format, shape):
    plain = normal(3, *shape).astype(ml_dtypes.bfloat16).astype(np.float32)
    plain[0, :40] = 0  # a group of zeros
    weight = plain
    if format == "bf16":
        weight = plain.astype(ml_dtypes.bfloat16)
    if format == "packed":
        if "bf16" not in detected():
            pytest.skip("packed matrices are for processors that multiply bf16")
        packing = Packing(shape)
        packing.add(0, plain.astype(ml_dtypes.bfloat16))
        weight = packing.end()
    if format == "int8":
        weight = quantise(plain, 8)
        plain = weight.astype(np.float32)
    same(drawn(weight), sketch_of(plain))


@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (37, 45)])
def test_sizes_need_not_be_whole_tiles_or_groups(shape):
    same(drawn(normal(3, *shape)), sketch_of(normal(3, *shape)))


def same(found, expected):
    np.testing.assert_array_equal(found.rough.values, expected.rough.values)
    np.testing.assert_array_equal(found.rough.scales, expected.rough.scales)
    np.testing.assert_allclose(found.norm_PR, expected.norm_PR, rtol=1e-6)
    assert found.shape == expected.shape and found.nbytes == expected.nbytes


def test_pieces_make_the_whole(monkeypatch):
    whole = drawn(normal(0, 100, 64))
    monkeypatch.setattr("backends.cpu.sketching.PIECE", 1)
    calls = []
    same(drawn(normal(0, 100, 64), before=lambda: calls.append(1)), whole)
    assert len(calls) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 10 * LONGEST])
def test_without_a_bound_there_is_no_sketch(bad):
    weight_OI = normal(0, 40, 64)
    weight_OI[33, 5] = bad
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="no number"):
        sketch_of(weight_OI)
    assert drawn(weight_OI) is None


def test_it_takes_little_more_than_four_bits_a_weight():
    assert sketch_of(normal(0, 1600, 896)).nbytes * 8 / (1600 * 896) < 4.55
