"""Memory in large pages: arrays that do not overlap, and pages that the system was asked for."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.large_pages import BLOCK, LARGE, LINE, LargePages


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40), st.sampled_from("fdBe")), max_size=12))
def test_arrays_are_whole_and_do_not_overlap(wanted):
    pages, arrays = LargePages(), []
    for number, (rows, columns, kind) in enumerate(wanted):
        array = pages.empty((rows, columns), np.dtype(kind))
        assert array.shape == (rows, columns) and array.dtype == kind
        assert array.flags.c_contiguous and array.flags.writeable
        assert not array.size or array.ctypes.data % LINE == 0
        array[...] = number
        arrays.append(array)
    assert all((array == number).all() for number, array in enumerate(arrays))


def test_more_than_a_block():
    pages = LargePages()
    small, large, after = (pages.empty((size,), np.dtype(np.uint8)) for size in (10, BLOCK + 1, 10))
    assert large.ctypes.data % LARGE == 0 and len(large) == BLOCK + 1
    assert not np.shares_memory(small, large) and not np.shares_memory(large, after)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what it was asked for")
def test_the_system_was_asked_for_large_pages_of_private_memory():
    array = LargePages().empty((3 * LARGE,), np.dtype(np.uint8))
    text = Path("/proc/self/smaps").read_text()
    if "VmFlags" not in text:
        pytest.skip("this kernel does not say")
    for found in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) (\S+)(?:.*\n)+?VmFlags: (.*)$", text, re.MULTILINE):
        if int(found[1], 16) <= array.ctypes.data < int(found[2], 16):
            assert found[3].endswith("p") and "hg" in found[4].split()
            return
    pytest.fail("no such mapping")


def test_a_cache_of_the_cpu_begins_at_a_large_page_if_it_fills_one():
    for shape in ((2, LARGE // 2), (2, 3, LARGE // 4 + 1)):
        array = backends.get("cpu", threads=1).empty(shape, np.dtype(np.int16))
        assert array.shape == shape and array.dtype == np.int16 and array.ctypes.data % LARGE == 0
        array[:] = 7
        assert (array == 7).all()
