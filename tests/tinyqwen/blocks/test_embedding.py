import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import call, normal
from tinyqwen.blocks.embedding import take_rows


@given(st.lists(st.integers(0, 30), max_size=9))
def test_rows_come_out_unchanged_in_the_order_asked_for(backend, rows):
    """Repeats, the last row and no row at all included; nothing is scaled."""
    table_ND = normal(0, 31, 7)
    out_TD = call(backend, take_rows, table_ND, np.array(rows, int))
    assert out_TD.shape == (len(rows), 7)
    for t, row in enumerate(rows):
        np.testing.assert_array_equal(out_TD[t], table_ND[row])


def test_activations_have_the_backends_type_whatever_the_table_has(backend):
    out_TD = call(backend, take_rows, normal(0, 4, 3).astype(np.float16), np.array([1, 2]))
    assert out_TD.dtype == backend.dtype


def test_writing_into_the_result_does_not_change_the_table(backend):
    """A residual stream that was a view of the table would poison every later token."""
    table_ND = backend.xp.asarray(normal(0, 4, 3))
    out_TD = take_rows(backend, table_ND, backend.xp.asarray(np.array([0, 1, 2, 3])))
    out_TD[:] = 0
    assert abs(table_ND).min() > 0
