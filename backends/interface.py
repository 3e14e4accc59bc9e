"""The array layer: an operation, its cost, its gradient, and the one door that every operation passes through.

A model is written once, as *operations* on arrays:

    @operation
    def add(backend, x_TD, y_TD):
        return x_TD + y_TD

Calling `add(backend, x_TD, y_TD)` runs nothing by itself. It asks the backend: `backend.run(add, ...)`. A backend
answers with a faster body of the same name if it has one, and with the definition otherwise. That single method, `run`,
is the door. Whoever stands in it sees every operation with its arrays and may time it (trace), answer with shapes alone
(plan), remember it (gradients) or share it out (parallel), and no line of the model knows. Such a bystander is a
`Wrapper`.

Three habits keep the door tight:

* Arrays, and trees of arrays, are positional arguments; settings (eps, window, config) are keyword arguments.
* Between operations there are only views (reshape, swapaxes, indexing), never arithmetic. Even the residual add is an
  operation, so a wrapper misses nothing.
* An operation without a cost of its own is a *composite*: wrappers let its definition run and see the steps inside.

Nothing here knows about language models, and nothing in `backends/` imports `tinyqwen`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


class Cost(NamedTuple):
    """What one call of an operation must at least do, whoever computes it.

    out       shape-only arrays (see `shape_only`) like the result: an array, or a tuple or list of them
    flops     floating point operations; a multiply-add counts as two
    read      bytes read, each input counted once
    written   bytes written
    """

    out: Any
    flops: int
    read: int
    written: int


class Operation:
    """A definition, its cost and its gradient under one name. Made by the decorator `operation`."""

    def __init__(self, definition: Callable):
        self.definition = definition
        self.name = definition.__name__
        self.__doc__ = definition.__doc__
        self.__module__ = definition.__module__
        self.__wrapped__ = definition  # inspect and doctest find the source and the examples here
        self.cost_of: Callable[..., Cost] | None = None
        self.gradient_of: Any = None  # an Operation, too

    def __call__(self, backend: Backend, *arrays, **settings):
        return backend.run(self, arrays, settings)

    def cost(self, function: Callable[..., Cost]) -> Callable[..., Cost]:
        """Decorator: `function(*arrays, **settings) -> Cost`, reading shapes and dtypes only, never values."""
        self.cost_of = function
        return function

    def gradient(self, function: Callable) -> Callable:
        """Decorator: `function(backend, d_out, *arrays, **settings)` returns a tuple, each array argument's gradient.

        d_out is the gradient of the result, d loss / d result; of several results a tuple, None where none is needed.
        None stands for the gradient of what has none (token ids); that of a list or tree of arrays is one of the same
        form. A gradient gives its arrays away: none may be another's memory, save that d_out may be used up.

        It is an operation, too, named `linear_gradient` after `linear`: it passes the door, and may have a faster body.
        Its cost is taken to be twice that of the operation, which has been stated above: there are two products on the
        way back for each one there, and the gradients have the shapes of the arguments.
        """
        self.gradient_of = Operation(function)
        self.gradient_of.name = f"{self.name}_gradient"
        if there := self.cost_of:

            def back(d_out, *arrays, **settings):
                cost = there(*arrays, **settings)
                return Cost(arrays, 2 * cost.flops, read=cost.read + cost.written, written=cost.read)

            self.gradient_of.cost_of = back
        return function

    def __repr__(self):
        return f"<operation {self.name}>"


operation = Operation


class Chain(Operation):
    """An operation that is nothing but others, one after another, for backends that can do all of them at once.

    A wrapper is never asked for it: it is given the operations themselves, so what it sees does not depend on who wraps
    whom, and a body of this name has nobody to hide them from.

    >>> @Chain
    ... def twice(backend, x): return double(backend, double(backend, x))
    >>> double = Operation(lambda backend, x: x + x)
    >>> twice(Backend(bodies={"twice": lambda backend, x: 4 * x}), 21), twice(Wrapper(Backend()), 21)
    (84, 84)
    """

    def __call__(self, backend: Backend, *arrays, **settings):
        if isinstance(backend, Wrapper):
            return self.definition(backend, *arrays, **settings)
        return super().__call__(backend, *arrays, **settings)


class Backend:
    """Where arrays live and which bodies run.

    name     as on the command line
    xp       the array module: numpy or cupy
    dtype    the floating point type of activations; float32, or float64 to tell noise from a bug
    bodies   faster bodies by operation name, each with its definition's signature; one that answers NotImplemented
             leaves this call to the definition
    dtypes   what `dtype` may be: the definitions compute in both, bodies may be made for one

    >>> double = Operation(lambda backend, x: backend.xp.add(x, x))
    >>> double(Backend(np), np.float32(21))
    np.float32(42.0)
    """

    name = "numpy"
    dtypes: tuple = (np.float32, np.float64)

    def __init__(self, xp: ModuleType = np, bodies: Mapping[str, Callable] | None = None, dtype=np.float32):
        self.xp = xp
        self.bodies = bodies or {}
        self.dtype = np.dtype(dtype)

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        """Run one operation. `door` is the outermost wrapper: operations inside this one must pass through it too."""
        body = self.bodies.get(operation.name, operation.definition)
        out = body(door or self, *arrays, **settings)
        return out if out is not NotImplemented else operation.definition(door or self, *arrays, **settings)

    def empty(self, shape: tuple[int, ...], dtype=None):
        """An uninitialised array in this backend's memory; caches live in these."""
        return self.xp.empty(shape, dtype or self.dtype)

    def settle(self) -> None:
        """Wait until all that was asked of this backend is done: a device works on while the program goes ahead."""

    def at(self, layer: int) -> Backend:
        """Who runs that layer of a model, and keeps its cache: this one, unless a model is shared out (split.py)."""
        return self


class Wrapper(Backend):
    """A backend around another one. Override `run`, do something, and pass on with `super().run`.

    Wrappers stack: the outermost is the `door` that composite operations hand to the operations inside them.

    >>> class Counting(Wrapper):
    ...     count = 0
    ...     def run(self, operation, arrays, settings, door=None):
    ...         self.count += 1
    ...         return super().run(operation, arrays, settings, door)
    >>> twice = Operation(lambda backend, x: add(backend, x, x))
    >>> add = Operation(lambda backend, x, y: x + y)
    >>> counting = Counting(Backend(np))
    >>> twice(counting, 21), counting.count
    (42, 2)
    """

    def __init__(self, inner: Backend):
        self.inner, self.name = inner, inner.name
        self.xp, self.bodies, self.dtype, self.dtypes = inner.xp, inner.bodies, inner.dtype, inner.dtypes

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        return self.inner.run(operation, arrays, settings, door or self)

    def empty(self, shape: tuple[int, ...], dtype=None):
        return self.inner.empty(shape, dtype)

    def settle(self) -> None:
        self.inner.settle()

    def at(self, layer: int) -> Backend:
        return self.inner.at(layer)


def shape_only(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A real, read-only array of any size in four bytes of memory: every element is the same one (strides 0).

    It has a shape, a dtype and `nbytes`, and reshapes, slices and transposes as an array with data would. That is all
    that costs and plans need, so a 72B model fits on a laptop.

    >>> embed_tokens_VD = shape_only((152064, 8192))
    >>> embed_tokens_VD.nbytes, embed_tokens_VD[:10].reshape(5, -1).shape
    (4982833152, (5, 16384))
    """
    return np.broadcast_to(np.zeros((), dtype), shape)


def host(array):
    """The NumPy array of an array that may lie in a device's memory.

    >>> host(np.ones(2)).sum()
    np.float64(2.0)
    """
    return array.get() if hasattr(array, "get") else array


def nbytes(*arrays) -> int:
    """Bytes of all arrays in nested tuples, lists and None.

    >>> nbytes(np.zeros(3, np.float32), None, [np.zeros(2, np.float16)])
    16
    """
    total = 0
    for array in arrays:
        if isinstance(array, (tuple, list)):
            total += nbytes(*array)
        elif array is not None:
            total += array.nbytes
    return total
