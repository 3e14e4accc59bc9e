"""How kernels are compiled: Numba, without what a kernel never needs, and once only: machine code is kept on disk.

Where: kernels/KEY/NAME-HASH.nbc in the folder of `cache_folder.py`, one file for each kernel and set of argument types.
KEY stands for everything that machine code depends on: every source file of the kernels, the versions of Numba, LLVM
and Python, the processor and its features. Numba's own cache looks at the one file that a kernel stands in; here
kernels are made of several, and an edit of `simd` would go unnoticed.

Writing a file may fail (a read-only home, a full disk): that costs one line of warning, and the next start compiles
again. Several processes may do all this at once: a file appears whole or not at all, and its name says what is in it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.extending import overload

from backends.cache_folder import cache_folder

# No fastmath: where the compiler may reorder sums or multiply by approximate reciprocals, it does so differently each
# time that a function is compiled into another one, so that a row would depend on who computes it; 1 / sqrt(infinity)
# becomes NaN. Kernels that write their vectors themselves lose nothing: all formats measured as fast as with it.
OPTIONS = {"nogil": True, "error_model": "numpy"}

# Numba counts who uses an array, in memory beside it, each time that one is passed on. Threads that share arrays would
# take this count from each other at every tile: where the cores have no common cache, that took as long as the tile's
# arithmetic. A function that makes no arrays has nothing to count (_nrt: Numba's run time).
COUNTED, UNCOUNTED = {"_nrt": True}, {"_nrt": False}

KEYS_KEPT = 8  # of other versions and processors (a home folder may serve several), the latest; a few MB each

announce: ContextVar[Callable[[str], None]] = ContextVar("announce", default=lambda name: None)


def kernel(function):
    """Compile for one thread."""
    return kept(numba.njit(function, **options(function)))


def inner(function):
    """Compile apart: the machine code of a hot loop stays one small piece."""
    return numba.njit(function, inline="never", **options(function))  # not kept: whoever calls it contains its code


def within(function):
    """Compile into whoever calls it: a few lines that stand in several loops."""
    return numba.njit(function, inline="always", **OPTIONS)


def body_of(name, allocates: bool = False):
    """A decorator: numba's `overload`, for a function without a body that has one for each kind of arguments."""
    jit_options: Any = OPTIONS | (COUNTED if allocates else UNCOUNTED)
    return overload(name, jit_options=jit_options)


def allocating(function):
    """Mark a function that makes arrays, or returns one, or calls one that does, below `@kernel` or `@inner`.

    Numba refuses to compile those that make arrays without the mark. One that only returns an array that it was given
    would be compiled, and the array freed twice; a test looks for those.
    """
    function.allocates = True
    return function


def options(function) -> dict:
    return OPTIONS | (COUNTED if hasattr(function, "allocates") else UNCOUNTED)


def kept(dispatcher):
    """The same compiled function, kept on disk, if all that it is made of are this project's kernels.

    A kernel of your own (in a notebook, in a lesson) is compiled at each start: KEY knows nothing of its source.
    """
    if {Path(function.__code__.co_filename).resolve() for function in made_of(dispatcher)} <= set(sources()):
        dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


def made_of(dispatcher) -> Iterator[Callable]:
    """The Python function that was compiled, and those of the compiled functions that it was made with."""
    yield dispatcher.py_func
    for cell in dispatcher.py_func.__closure__ or ():
        if isinstance(cell.cell_contents, numba.core.dispatcher.Dispatcher):
            yield from made_of(cell.cell_contents)


@contextlib.contextmanager
def announced(to: Callable[[str], None]) -> Iterator[None]:
    """In this block (and thread), `to` is called with the name of every kernel that is about to be compiled."""
    before = announce.set(to)
    try:
        yield
    finally:
        announce.reset(before)


def folder() -> Path:
    """Where the kernels of this version, on this processor, are kept."""
    return cache_folder() / "kernels" / key()


@functools.cache
def key() -> str:
    """What machine code depends on, besides the types of its arguments, in 16 letters."""
    versions = numba.__version__, llvmlite.__version__, platform.python_version()
    processor = cpu_target.target_context.codegen().magic_tuple()
    text = repr((versions, processor)).encode()
    return hashlib.sha256(b"".join([text, *(source.read_bytes() for source in sources())])).hexdigest()[:16]


@functools.cache
def sources() -> list[Path]:
    """The files that kernels are made of; a test holds that they use no others of this project."""
    here = Path(__file__).resolve().parent
    return sorted([*here.rglob("*.py"), *(here.parent / f"{name}.py" for name in ("quantised", "packed", "sketch"))])


@functools.cache
def warn_once(trouble: str) -> None:
    warnings.warn(f"kernels are compiled anew at each start: {trouble}", stacklevel=2)


class KernelCache(_Cache):
    """What Numba asks for machine code before it compiles, and gives it to afterwards."""

    def __init__(self, function):
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}".replace("<locals>.", "")

    def path(self, signature) -> Path:
        cells = self.function.__closure__ or ()
        # Arguments gathered by a star are another type than a tuple, under the same name. With the code of one, a call
        # with the other finds it on disk each time, and never in memory: slow, and megabytes more for each call.
        kinds = [type(each).__name__ for each in signature]
        text = repr((signature, kinds, [lasting(cell.cell_contents) for cell in cells]))
        return folder() / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.nbc"

    def load_overload(self, signature, target_context):
        """The machine code for these argument types, or None."""
        try:
            reduced = pickle.loads(self.path(signature).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):  # not there, or not whole: then it will be written again
            announce.get()(self.name)
            return None
        target_context.refresh()
        return CompileResult._rebuild(target_context, *reduced)

    def save_overload(self, signature, result) -> None:
        if result.library.has_dynamic_globals:  # it holds an address that another process does not have
            return
        path = self.path(signature)
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                forget_old(path.parent.parent)
            part = path.with_suffix(f".{os.getpid()}")
            try:
                part.write_bytes(dumps(result._reduce()))
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            warn_once(f"{path.parent}: {error.strerror}")

    cache_path = property(lambda self: str(folder()))

    def enable(self):  # always is
        pass

    def disable(self):
        pass

    def flush(self):
        pass


def lasting(value):
    """A value that a kernel was made with, in words that mean the same in every process.

    >>> lasting((8, "int8"))
    "(8, 'int8')"

    Errors: TypeError for what has no such words; make it a global of its module, then the sources stand for it.
    """
    if isinstance(value, (bool, int, float, str, tuple)):
        return repr(value)
    if isinstance(value, numba.core.dispatcher.Dispatcher):
        function = value.py_func
        cells = [lasting(cell.cell_contents) for cell in function.__closure__ or ()]
        return f"{function.__module__}.{function.__qualname__}{cells}"
    raise TypeError(f"a kernel made with {value!r} cannot be kept on disk")


def forget_old(kernels: Path) -> None:
    """Delete all but the latest few keys."""
    latest = sorted(kernels.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
    for each in latest[KEYS_KEPT:]:
        shutil.rmtree(each, ignore_errors=True)


key()  # now, while the files are those that are being imported: old code must not get the key of a later edit
