"""Kernels of the stand-in for CuPy: the same text, built for the host by `host.py`, called with CuPy's arguments."""

from __future__ import annotations

import numpy as np

from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy, ndarray

THREADS, SHARED, STATIC = 1024, 227 << 10, 48 << 10  # a block's limits; shared memory beyond STATIC must be allowed


class Module:
    """As cupy.RawModule."""

    def __init__(self, device: FakeCupy, code: str, options: tuple):
        if not all(option.startswith(("-", "--")) for option in options):
            raise ValueError(f"no options: {options}")
        self.device, self.library = device, host.Module(code)
        self.allowed: dict[str, int] = {}  # bytes of dynamic shared memory, by kernel

    def get_function(self, name: str) -> Kernel:
        return Kernel(self, name)


class Kernel:
    """As cupy.RawKernel."""

    def __init__(self, module: Module, name: str):
        self.module, self.device, self.name = module, module.device, name
        self.function = module.library.get_function(name)

    # Of the function in the module, not of this object: CuPy's kernels of one name share it.
    max_dynamic_shared_size_bytes = property(
        lambda self: self.module.allowed.get(self.name, STATIC),
        lambda self, nbytes: self.module.allowed.update({self.name: nbytes}),
    )

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        self.check(grid, block, args, shared_mem)
        inside = tuple(arg.memory if isinstance(arg, ndarray) else arg for arg in args)

        def launch():
            self.function(grid, block, inside, shared_mem=shared_mem)

        if capture := self.device.capture:
            owners = [arg.owner for arg in args if isinstance(arg, ndarray)]
            pointers = [arg for arg, size in zip(args, self.function.sizes) if size < 0]  # a count may be uint64, too
            addresses = [int(arg) for arg in pointers if type(arg) is np.uint64]
            addresses += [address for arg in args if host.is_struct(arg) for address in host.addresses_in(arg)]
            owners += [self.device.cuda.owner_of(address) for address in addresses]
            for owner in owners:
                capture.before_writing(owner.memory)
            capture.add(launch, owners)
        launch()

    def check(self, grid, block, args, shared_mem) -> None:
        """Refuse what a GPU would refuse, and what it would do wrong."""
        cuda = self.device.cuda
        if cuda.current is cuda.default:
            raise RuntimeError(f"{self.name}: launched in the default stream, beside everything else")
        if not all(isinstance(size, int) and size > 0 for size in (*grid, *block)):
            raise ValueError(f"{self.name}: a grid of {grid} blocks of {block} threads (CuPy would make a 0 a 1)")
        if np.prod(block) > THREADS or (*grid, 1, 1)[1] > 65535 or (*grid, 1, 1)[2] > 65535:
            raise ValueError(f"{self.name}: a grid of {grid} blocks of {block} threads is too large")
        if shared_mem > min(self.max_dynamic_shared_size_bytes, SHARED):
            raise ValueError(f"{self.name}: {shared_mem} bytes of shared memory, which nobody has allowed")
        for place, arg in enumerate(args):
            if isinstance(arg, ndarray):
                cuda.current.uses(arg.owner)
                if not arg.memory.flags.c_contiguous:
                    raise TypeError(
                        f"{self.name}: argument {place}, of shape {arg.shape}, has gaps: kernels ignore strides"
                    )
            elif isinstance(arg, np.ndarray) and not host.is_struct(arg):
                raise TypeError(f"{self.name}: argument {place} is a NumPy array")
            elif arg is not None and not isinstance(arg, (np.generic, np.ndarray)):
                raise TypeError(
                    f"{self.name}: argument {place} is a Python {type(arg).__name__}: say np.int32 or np.float32"
                )
