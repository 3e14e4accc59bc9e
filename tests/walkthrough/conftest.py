"""Lessons set how NumPy prints; what one of them sets in this process must not reach other tests."""

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def printing_as_before():
    with np.printoptions():
        yield
