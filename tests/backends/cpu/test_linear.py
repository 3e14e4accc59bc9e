"""The matrix products of every weight format, on this processor's own instructions and on any processor's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.cpu.features import detected
from backends.cpu.linear import linear_for
from backends.quantised import quantise
from tests.helpers import assert_close, normal

SEED = st.integers(0, 2**32 - 1)
FORMATS = ("f32", "bf16", "int8", "int4")
KINDS = sorted({detected(), frozenset()}, key=len)


def in_format(weight_OI, format):
    if format == "f32":
        return weight_OI
    return weight_OI.astype(ml_dtypes.bfloat16) if format == "bf16" else quantise(weight_OI, int(format[3:]))


def rounded(features, format, T, O, I):  # noqa: E741
    """How finely the tokens are rounded before they are multiplied, relative to a group's largest number."""
    if format == "bf16" and "bf16" in features and I % 2 == 0:
        return 2.0**-8 if T > 1 and O >= 16 else 2.0**-16
    if format in ("int8", "int4") and "vnni" in features:
        return 1 / 127 if (T > 1 and O >= 16) or format == "int4" else 1 / 32767
    return 0.0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("features", KINDS, ids=lambda features: "+".join(sorted(features)) or "any processor")
@given(SEED, st.integers(1, 40), st.integers(1, 70), st.integers(1, 200), st.booleans())
@example(0, 1, 16, 32, True)
@example(0, 16, 16, 64, False)
@example(0, 33, 128, 128, True)
def test_equals_the_product_in_float64(features, format, seed, T, O, I, with_bias):  # noqa: E741
    x_TI, weight_OI = normal(seed, T, I), in_format(normal(seed + 1, O, I), format)
    bias_O = normal(seed + 2, O) if with_bias else None
    wide_OI = weight_OI.astype(np.float64)
    expected_TO = x_TI.astype(np.float64) @ wide_OI.T + (0 if bias_O is None else bias_O)
    out_TO = linear_for(features)(None, x_TI, weight_OI, bias_O)
    assert out_TO.dtype == np.float32

    # float32 sums are off by 1e-6 of the terms; a token rounded in steps of s by at most s / 2 of its largest number.
    step = np.abs(x_TI).max() * rounded(features, format, T, O, I) / 2
    terms_TO = np.abs(x_TI) @ np.abs(wide_OI).T + (0 if bias_O is None else np.abs(bias_O))
    allowed_TO = 2e-6 * terms_TO + step * np.abs(wide_OI).sum(axis=1)
    assert (np.abs(out_TO - expected_TO) <= allowed_TO).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("T", [1, 5])
def test_sizes_of_size_have_small_errors(format, T):
    """At the 0.5B's width the roundings cancel: float32 to 2e-6, tokens in bf16 0.2 %, twice that 1e-5, in 8 bits 1 %,
    in 16 bits 1e-4."""
    x_TI, weight_OI = normal(0, T, 896), in_format(normal(1, 256, 896) * 0.02, format)
    out_TO = linear_for(detected())(None, x_TI, weight_OI)
    expected_TO = x_TI.astype(np.float64) @ weight_OI.astype(np.float64).T
    allowed = {0.0: 2e-6, 2.0**-8: 4e-3, 2.0**-16: 1e-5, 1 / 127: 1e-2, 1 / 32767: 1e-4}[
        rounded(detected(), format, T, 256, 896)
    ]
    assert_close(out_TO, expected_TO, allowed)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("features", KINDS, ids=len)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_huge_and_tiny_tokens(features, format, T, scale):
    x_TI, weight_OI = normal(0, T, 96), in_format(normal(1, 32, 96), format)
    body = linear_for(features)
    expected_TO = (x_TI.astype(np.float64) * scale) @ weight_OI.astype(np.float64).T
    assert_close(body(None, x_TI * np.float32(scale), weight_OI), expected_TO, 2e-2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("features", KINDS, ids=len)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_come_out_as_no_number(features, format, T, bad):
    x_TI, weight_OI = normal(0, T, 70), in_format(normal(1, 20, 70), format)
    x_TI[-1, 37] = bad
    out_TO = linear_for(features)(None, x_TI, weight_OI)
    assert not np.isfinite(out_TO[-1]).any()
    assert np.isfinite(out_TO[:-1]).all()


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_nan_in_a_weight_reaches_its_own_output_only(format):
    weight_OI = normal(1, 20, 70)
    weight_OI[3, 69] = np.nan
    for T in (1, 17):
        out_TO = linear_for(detected())(None, normal(0, T, 70), in_format(weight_OI, format))
        assert np.isnan(out_TO[:, 3]).all() and np.isfinite(np.delete(out_TO, 3, axis=1)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_mapped_file_and_awkward_strides_will_do(format):
    """Weights of a mapped checkpoint are read-only; tokens may be a slice."""
    weight_OI = in_format(normal(1, 48, 64), format)
    for array in (weight_OI.values, weight_OI.scales) if hasattr(weight_OI, "values") else (weight_OI,):
        array.flags.writeable = False
    wide_TI = normal(0, 6, 128)
    for T in (1, 6):
        expected_TO = linear_for(detected())(None, wide_TI[:T, ::2].copy(), weight_OI)
        np.testing.assert_array_equal(linear_for(detected())(None, wide_TI[:T, ::2], weight_OI), expected_TO)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 4, 0), (3, 0, 8)])
def test_nothing_in_nothing_out(format, shape):
    T, O, I = shape  # noqa: E741
    if format in ("int8", "int4") and not O * I:
        pytest.skip("an empty matrix has no groups")
    bias_O = normal(2, O)
    out_TO = linear_for(detected())(None, normal(0, T, I), in_format(normal(1, O, I), format), bias_O)
    np.testing.assert_array_equal(out_TO, np.broadcast_to(bias_O, (T, O)))


@pytest.mark.parametrize("format", FORMATS)
def test_the_number_of_threads_changes_no_bit(format):
    import numba

    x_TI, weight_OI = normal(0, 20, 224), in_format(normal(1, 300, 224), format)
    results = []
    try:
        for threads in {1, numba.config.NUMBA_NUM_THREADS}:
            numba.set_num_threads(threads)
            results.append([linear_for(detected())(None, x_TI[:T], weight_OI) for T in (1, 20)])
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    for one, other in zip(results[0], results[-1]):
        np.testing.assert_array_equal(one, other)
