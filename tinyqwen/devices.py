"""What some machines can do at best, from their makers' public datasheets.

Memory in 10^9 bytes, reading in 10^9 bytes a second, arithmetic in 10^12 FLOPs a second: matrix products with 16-bit
inputs and 32-bit sums, dense, where the hardware has units for them, else float32. Nothing ever reaches these numbers;
they bound what is possible. `python -m tinyqwen trace` measures the machine at hand instead.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyqwen.errors import UsageError


class Device(NamedTuple):
    """A row of a datasheet."""

    memory: float
    bandwidth: float
    teraflops: float


DEVICES: dict[str, Device] = {
    "laptop DDR4": Device(16, 51.2, 0.5),  # two channels of DDR4-3200; 8 cores with AVX2
    "laptop LPDDR5X": Device(32, 120, 1.0),  # 128 bits of LPDDR5X-7500; 8 cores with AVX-512
    "Apple M2": Device(24, 100, 3.6),
    "Apple M4 Max": Device(128, 546, 17),
    "RTX 3060": Device(12, 360, 25),
    "RTX 4090": Device(24, 1008, 165),
    "A100": Device(80, 2039, 312),
    "H100": Device(80, 3350, 989),
    "H200": Device(141, 4800, 989),
    "MI300X": Device(192, 5300, 1307),
}


def device_named(name: str) -> Device:
    """The device of that name, in capitals or not. Errors: UsageError lists the names.

    >>> device_named("h200").bandwidth
    4800
    """
    for known, device in DEVICES.items():
        if known.lower() == name.lower():
            return device
    raise UsageError(f"no device {name!r}; there are {', '.join(DEVICES)}")
