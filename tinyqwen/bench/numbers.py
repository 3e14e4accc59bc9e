"""What is said of a number that was measured several times: its median, and how far it spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of some rounds, the lowest and the highest.

    >>> Spread.of([3.0, 1.0, 2.0]), str(Spread.of([12.34, 9.87, 10.0]))
    (Spread(median=2.0, low=1.0, high=3.0), '10.0 (9.87 to 12.3)')
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Errors: ValueError if there are none."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self):
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """Three digits that mean something, no exponents.

    >>> short(1234.5), short(12.345), short(0.012345), short(0)
    ('1,234', '12.3', '0.0123', '0')
    """
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def within_rounds(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One divided by the other in each round that both finished: what slowed both down cancels out.

    >>> within_rounds([2.0, 6.0, 9.0], [1.0, 3.0])
    [2.0, 2.0]
    """
    return [first / second for first, second in zip(over, under)]
