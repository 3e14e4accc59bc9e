"""YaRN's frequencies and temperature: the published numbers, what the words promise, and the tables that use them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend
from tests.helpers import call
from tinyqwen.blocks.rope import rope_tables
from tinyqwen.blocks.yarn import attention_factor, correction_range, slowed
from tinyqwen.config import RopeScaling

EXACT = Backend(dtype=np.float64)
HALF, THETA = st.integers(1, 64), st.sampled_from([1e4, 1e6, 1e7])
FACTOR = st.floats(1, 64)
TRAINED = st.sampled_from([2048, 8192, 32768, 131072])


def plain(K, theta):
    return theta ** -(np.arange(0, K, 2) / K)


def exact(K, theta, scaling):
    return slowed(EXACT, plain(K, theta), theta=theta, scaling=scaling)


# ---- published numbers: theta 1e6, trained at 32768 ---------------------------------------------------------------


@pytest.mark.parametrize("K, fast, slow, low, high", [(128, 23.596, 39.651, 23, 40), (64, 11.798, 19.825, 11, 20)])
def test_correction_range(K, fast, slow, low, high):
    assert correction_range(K, 1e6, RopeScaling(4, 32768)) == (low, high)
    unrounded = correction_range(K, 1e6, RopeScaling(4, 32768, truncate=False))
    assert unrounded == (pytest.approx(fast, abs=5e-4), pytest.approx(slow, abs=5e-4))


@pytest.mark.parametrize("factor, m, squared", [(4, 1.1386294361, 1.2964769928), (2, 1.0693147181, 1.1434339663)])
def test_temperature(factor, m, squared):
    assert attention_factor(RopeScaling(factor, 32768)) == pytest.approx(m, abs=1e-10)
    assert attention_factor(RopeScaling(factor, 32768)) ** 2 == pytest.approx(squared, abs=1e-10)


def test_samples_of_the_frequencies():
    found_Kh = exact(128, 1e6, RopeScaling(4, 32768))
    published = {
        22: 0.0086596432, 24: 0.0053753215, 30: 0.0010643610, 39: 6.4903943e-05, 40: 4.4456985e-05, 63: 3.1023444e-07
    }  # fmt: skip
    for pair, frequency in published.items():
        assert found_Kh[pair] == pytest.approx(frequency, rel=1e-7)
    np.testing.assert_array_equal(found_Kh[:24], plain(128, 1e6)[:24])
    np.testing.assert_array_equal(found_Kh[40:], plain(128, 1e6)[40:] / 4)


# ---- what the words promise ---------------------------------------------------------------------------------------


@given(HALF, THETA, TRAINED, FACTOR)
def test_fast_pairs_stay_slow_pairs_are_divided_and_between_them_it_grows(half, theta, trained, factor):
    before_Kh, after_Kh = plain(2 * half, theta), exact(2 * half, theta, RopeScaling(factor, trained))
    turns_Kh, slower_Kh = trained * before_Kh / (2 * math.pi), before_Kh / after_Kh
    low, high = correction_range(2 * half, theta, RopeScaling(factor, trained, truncate=False))
    whole = np.arange(half) <= math.floor(low)
    np.testing.assert_allclose(slower_Kh[whole], 1, rtol=1e-12)
    np.testing.assert_allclose(slower_Kh[np.arange(half) >= math.ceil(high)], factor, rtol=1e-12)
    assert (turns_Kh[whole] >= 32 * (1 - 1e-9)).all()
    assert (np.diff(slower_Kh) >= -1e-12 * factor).all(), "the slower a pair, the more it is slowed"


@given(HALF, THETA, TRAINED)
def test_factor_one_is_plain_rope(half, theta, trained):
    scaling = RopeScaling(1, trained)
    np.testing.assert_allclose(exact(2 * half, theta, scaling), plain(2 * half, theta), rtol=1e-15)
    assert attention_factor(scaling) == 1


@given(THETA, TRAINED, FACTOR, st.sampled_from([64, 128]))
def test_a_stretched_text_has_no_angle_that_training_had_not(theta, trained, factor, K):
    """The last position turns every pair that never finished a turn just as far as the trained text's last did."""
    never_Kh = trained * plain(K, theta) < 2 * math.pi
    first = math.ceil(correction_range(K, theta, RopeScaling(factor, trained))[1])
    assert never_Kh[first:].all()
    furthest_Kh = factor * trained * exact(K, theta, RopeScaling(factor, trained))
    np.testing.assert_allclose(furthest_Kh[first:], trained * plain(K, theta)[first:], rtol=1e-12)


def test_how_the_temperature_may_be_given():
    assert attention_factor(RopeScaling(4, 9, attention_factor=0.7, mscale=2, mscale_all_dim=1)) == 0.7
    weighted = RopeScaling(4, 9, mscale=2, mscale_all_dim=1)
    assert attention_factor(weighted) == (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    assert attention_factor(RopeScaling(1, 9, mscale=2, mscale_all_dim=1)) == 1


def test_a_ramp_of_no_width_is_a_step():
    scaling = RopeScaling(4, 32768, beta_fast=8, beta_slow=8, truncate=False)
    slower_Kh = plain(128, 1e6) / exact(128, 1e6, scaling)
    step = 32768 * plain(128, 1e6) / (2 * math.pi) < 8
    np.testing.assert_allclose(slower_Kh, np.where(step, 4, 1), rtol=1e-12)


# ---- the tables ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 131071), min_size=1, max_size=4), HALF, THETA, TRAINED, FACTOR)
def test_tables_are_cosine_and_sine_of_slower_angles_times_m(backend, position_T, half, theta, trained, factor):
    """Within float32: the angle is good to (ln(theta) + 10) roundings, and so are cosine and sine, times m."""
    scaling, position_T = RopeScaling(factor, trained), np.array(position_T)
    m, angle_TKh = attention_factor(scaling), position_T[:, None] * exact(2 * half, theta, scaling)
    found = call(backend, rope_tables, position_T, head_dim=2 * half, theta=theta, scaling=scaling)
    allowed_TKh = m * (angle_TKh * (np.log(theta) + 10) + 10) * 2.0**-24
    for table_TKh, function in zip(found, (np.cos, np.sin)):
        assert table_TKh.dtype == np.float32
        assert (np.abs(table_TKh - m * function(angle_TKh)) <= allowed_TKh).all()
