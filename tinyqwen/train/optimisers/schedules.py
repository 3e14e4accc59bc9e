"""How large the steps are when: the learning rate as a fraction of its peak, for each step counted from 0.

    warm-up    from 0 up to 1 in a straight line: at first m and v know little
    cosine     down along half a cosine to `floor`: needs to know the end beforehand
    wsd        stays at 1 (warm-up, stable, decay), and goes down in a straight line over the last part: a run can be
               continued from its stable part, and the loss falls most while it decays

Source: Loshchilov and Hutter 2017 (cosine); Hu et al. 2024, "MiniCPM", section 4 (WSD).
"""

from __future__ import annotations

import math


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.1) -> float:
    """
    >>> [round(cosine(step, 101, warmup=2), 3) for step in (0, 1, 2, 51, 100)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(done, 1))) / 2


def wsd(step: int, steps: int, *, warmup: int = 0, decay: float = 0.2, floor: float = 0.1) -> float:
    """
    decay   the last part of the steps, as a fraction, in which it goes down

    >>> [round(wsd(step, 101, warmup=2), 3) for step in (0, 1, 2, 79, 90, 100)]
    [0.5, 1.0, 1.0, 1.0, 0.55, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - 1 - step) / max(1, round(decay * (steps - 1)))
    return floor + (1 - floor) * min(1, max(0, left))
