"""How gradients are judged: against central differences in float64, which know nothing of derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from backends import Backend
from tinyqwen.weights import Node

DOUBLE = Backend(np, dtype=np.float64)
STEP = 1e-5  # of a central difference: its error is of the order of STEP^2, and of rounding 1e-16 / STEP
NEEDED = 1e-6  # how far off a gradient may be, relative to the largest of its array


def double(value):
    """Arrays and trees of arrays, widened."""
    if isinstance(value, (list, tuple)):
        return type(value)(double(each) for each in value)
    if isinstance(value, Node):
        return Node(**{name: double(each) for name, each in vars(value).items()})
    return value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value


def slope(loss: Callable[[], float], array: np.ndarray, at: tuple) -> float:
    """d loss / d array[at]."""
    keep, sides = array[at], []
    for array[at] in (keep + STEP, keep - STEP):
        sides.append(loss())
    array[at] = keep
    return (sides[0] - sides[1]) / (2 * STEP)


def assert_slopes(
    loss: Callable[[], float], array: np.ndarray, gradient: np.ndarray, at: Iterable[tuple] | None = None
):
    """The gradient is that of the loss, at these places of the array (at all of them)."""
    assert gradient.shape == array.shape and gradient.dtype == array.dtype
    largest = np.abs(gradient).max(initial=1e-3)
    for place in np.ndindex(array.shape) if at is None else at:
        expected = slope(loss, array, place)
        off = abs(gradient[place] - expected)
        assert off <= NEEDED * largest, f"{place}: {gradient[place]:.8g}, by differences {expected:.8g}"
