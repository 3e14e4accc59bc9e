"""The text of the kernels: files joined, `#line` before each, so that a compiler's message names the right one."""

from __future__ import annotations

KERNELS: dict[str, str] = {}


def program(stem: str, **constants: int) -> str:
    """The text of one `.cu` file with all that it needs before it."""
    raise NotImplementedError
