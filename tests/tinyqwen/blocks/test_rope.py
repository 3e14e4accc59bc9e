import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, normal
from tinyqwen.blocks.rope import rope, rope_tables

SEED = st.integers(0, 2**32 - 1)
HALF = st.integers(1, 64)  # K / 2
THETA = st.sampled_from([10000.0, 1000000.0])
POSITION = st.integers(0, 131071)
UNIT = 2.0**-24  # the relative error of one float32 rounding


def tables(backend, position_T, K, theta):
    return call(backend, rope_tables, np.asarray(position_T), head_dim=K, theta=theta)


def turned(backend, x_K, position, theta):
    """One head's vector, turned to that position."""
    return call(backend, rope, x_K[None, None], *tables(backend, [position], len(x_K), theta))[0, 0]


def exact_angles(position_T, K, theta):
    return np.asarray(position_T)[:, None] * theta ** (-np.arange(0, K, 2) / K)


def angle_error(position_T, K, theta):
    """How far float32 may be from the exact angle: each step's rounding, carried to the product.

    An exponent that is off by UNIT moves theta ** exponent by ln(theta) * UNIT; the power itself is good to two units
    in the last place (4 UNIT), the reciprocal and the product round once each.
    """
    return exact_angles(position_T, K, theta) * (np.log(theta) + 6) * UNIT


@given(st.lists(POSITION, min_size=1, max_size=5), HALF, THETA)
def test_tables_equal_float64_within_the_rounding_of_the_angle(backend, position_T, half, theta):
    angle_TKh = exact_angles(position_T, 2 * half, theta)
    allowed_TKh = angle_error(position_T, 2 * half, theta) + 8 * UNIT  # sine and cosine themselves: 4 last places
    for table_TKh, exact_TKh in zip(tables(backend, position_T, 2 * half, theta), (np.cos, np.sin)):
        assert table_TKh.dtype == np.float32
        assert (np.abs(table_TKh - exact_TKh(angle_TKh)) <= allowed_TKh).all()


def test_position_257_is_not_256(backend):
    """bfloat16 angles would make it so."""
    cos_TKh, _ = tables(backend, [256, 257], 64, 1e6)
    assert (np.abs(cos_TKh[0, :8] - cos_TKh[1, :8]) > 1e-3).all()


@given(SEED, HALF, POSITION)
def test_turning_keeps_every_pair_as_long_as_it_was(backend, seed, half, position):
    x_K = normal(seed, 2 * half)
    out_K = turned(backend, x_K, position, 1e6)
    length = lambda y_K: np.hypot(y_K[:half], y_K[half:])  # noqa: E731
    np.testing.assert_allclose(length(out_K), length(x_K), rtol=8 * UNIT)


@given(SEED, HALF)
def test_position_zero_changes_nothing(backend, seed, half):
    x_K = normal(seed, 2 * half)
    np.testing.assert_array_equal(turned(backend, x_K, 0, 1e6), x_K)


@given(SEED, HALF, st.integers(0, 200), st.sampled_from([1, 1000, 99_000, 100_000]), THETA)
def test_scores_depend_on_the_distance_only(backend, seed, half, distance, shift, theta):
    """The same two vectors, moved along together by up to 100,000 tokens, have the same dot product.

    Both positions use the same (rounded) frequencies, so only the last product, position * frequency, is off: by half
    the spacing of float32 at that angle, for each of the four turns. A pair that is off by that angle moves its part
    of the dot product by at most |q| |k| times it.
    """
    q_K, k_K = normal(seed, 2 * half), normal(seed + 1, 2 * half)

    def score(start):
        return np.dot(
            turned(backend, q_K, start + distance, theta).astype(np.float64), turned(backend, k_K, start, theta)
        )

    def spacing(position):
        return np.spacing(exact_angles([position], 2 * half, theta)[0].astype(np.float32)) / 2

    off_Kh = spacing(distance) + spacing(0) + spacing(shift + distance) + spacing(shift)
    reach_Kh = np.hypot(q_K[:half], q_K[half:]) * np.hypot(k_K[:half], k_K[half:])
    allowed = (reach_Kh * (off_Kh + 32 * UNIT)).sum()  # 32: tables and turns, at either end
    assert abs(score(0) - score(shift)) <= allowed


@given(SEED, HALF, st.integers(0, 5000))
def test_equals_the_interleaved_pairing_when_rows_are_reordered(backend, seed, half, position):
    """The paper and llama2.c turn neighbours 2i and 2i + 1; Qwen2 turns i and i + K/2. The rest is the same."""
    x_K = normal(seed, 2 * half)
    angle_Kh = exact_angles([position], 2 * half, 1e6)[0]
    interleaved_K = np.empty(2 * half)
    interleaved_K[0::2] = x_K[0::2] * np.cos(angle_Kh) - x_K[1::2] * np.sin(angle_Kh)
    interleaved_K[1::2] = x_K[0::2] * np.sin(angle_Kh) + x_K[1::2] * np.cos(angle_Kh)

    halves_K = np.concatenate([x_K[0::2], x_K[1::2]])
    expected_K = np.concatenate([interleaved_K[0::2], interleaved_K[1::2]])
    allowed = np.abs(x_K).max() * 2 * (angle_error([position], 2 * half, 1e6).max() + 8 * UNIT)
    np.testing.assert_allclose(turned(backend, halves_K, position, 1e6), expected_K, rtol=0, atol=allowed)


def test_each_token_turns_by_its_own_position_and_all_its_heads_alike(backend):
    x_TNK, position_T = normal(0, 4, 3, 8), [5, 0, 77, 5]
    out_TNK = call(backend, rope, x_TNK, *tables(backend, position_T, 8, 1e4))
    for t, position in enumerate(position_T):
        for n in range(3):
            assert_close(out_TNK[t, n], turned(backend, x_TNK[t, n], position, 1e4), 1e-6)


def test_does_not_write_into_its_input(backend):
    x_TNK = normal(0, 2, 1, 4)
    before_TNK = x_TNK.copy()
    call(backend, rope, x_TNK, *tables(backend, [1, 2], 4, 1e4))
    np.testing.assert_array_equal(x_TNK, before_TNK)
