"""Gradients: a wrapper that remembers operations, and then walks them backwards.

    tape = Gradient(backend, parameters)
    y = forward(tape, ...)                  the unchanged model, which notices nothing
    tape.backward(y, d_y)                   from d loss / d y to d loss / d parameter, for all of them
    tape.gradients["norm.weight"]           added to by every `backward`, until `clear`

Every operation with a gradient of its own is remembered with its arguments; backwards, its gradient is called with them
and with the gradient of its result (the chain rule). All others are opened: what is inside them is remembered.

**Views.** Between operations there are only views, and a view is another way to read the same memory. So gradients
belong to *memory*: each piece that an operation made, or that holds parameters, has a twin in which its gradient adds
up, and the gradient of a view is the same view of the twin. No array is wrapped in anything. Whatever is used twice, as
the residual stream or a tied embedding is, under whatever name and shape, adds up by itself.

Two settings trade time for memory, and change no gradient:

    several `backward` before one `clear`     a large batch in parts that fit (gradient accumulation)
    recompute={"decoder_layer"}               of these operations only the arguments are kept; backwards they run once
                                              more, now remembered inside: a third more time in all

Source: Griewank and Walther 2008, "Evaluating Derivatives", chapters 3 and 12; Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from backends.interface import Backend, Operation, Wrapper


class Call(NamedTuple):
    """An operation that ran."""

    operation: Operation
    arrays: tuple
    settings: dict
    out: Any


class Gradient(Wrapper):
    """Remembers what runs through it, and answers with gradients.

    parameters   {name: array}, floating point arrays or views of them: whose gradients are wanted
    recompute    names of operations that shall run a second time instead of being remembered

    >>> import numpy as np
    >>> times = Operation(lambda backend, x, y: x * y); times.name = "times"
    >>> _ = times.gradient(lambda backend, d_out, x, y: (d_out * y, d_out * x))
    >>> x = np.array([3.0, 5.0])
    >>> tape = Gradient(Backend(np, dtype=np.float64), {"x": x})
    >>> cube = times(tape, times(tape, x, x), x)
    >>> tape.backward(cube, np.ones(2)); tape.gradients["x"]                      # 3 x^2
    array([27., 75.])

    Errors: TypeError for parameters of another type than the backend computes in, for a result that has no gradient
    although it depends on a parameter, and for one that no later operation used.
    """

    def __init__(self, inner: Backend, parameters: Mapping[str, Any], recompute: Collection[str] = ()):
        super().__init__(inner)
        self.recompute = frozenset(recompute)
        self.tape: list[Call] = []
        self.twins: dict[int, Twin] = {}
        self.gradients: dict[str, Any] = {}
        for name, array in parameters.items():
            if array.dtype != self.dtype:
                raise TypeError(f"{name} is {array.dtype}: parameters that are trained must be {self.dtype}")
            memory = owner(array, self.xp)
            if id(memory) not in self.twins:
                self.twins[id(memory)] = Twin(memory, self.xp.zeros_like(memory))
            self.gradients[name] = self.twins[id(memory)].view(array, self.xp)
        self.parameters = dict(parameters)
        self.lasting = dict(self.twins)

    def clear(self) -> None:
        """Forget what ran, and set all gradients to zero."""
        self.tape.clear()
        self.twins = dict(self.lasting)
        for twin in self.twins.values():
            twin.gradient[...] = 0

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        if operation.gradient_of is None and operation.name not in self.recompute:
            out = operation.definition(door or self, *arrays, **settings)
            if any(map(self.twin_of, leaves(arrays))) and not all(map(self.twin_of, leaves(out))):
                raise TypeError(f"{operation.name} has no gradient, and what it was given depends on a parameter")
            return out
        out = self.inner.run(operation, arrays, settings)  # without a door: what happens inside is its own gradient's
        self.tape.append(Call(operation, arrays, settings, out))
        for array in leaves(out):
            memory = owner(array, self.xp)
            if id(memory) in self.twins:
                raise TypeError(f"{operation.name} has a gradient, so its result must have memory of its own")
            self.twins[id(memory)] = Twin(memory)
        return out

    def backward(self, out, d_out) -> None:
        """Add to all gradients what `out` contributes, if d loss / d out is `d_out`. The tape is empty afterwards."""
        if self.twin_of(out) is None:
            raise ValueError("backward starts at the result of an operation that ran since the last backward")
        self.add(out, d_out.copy())
        while self.tape:
            operation, arrays, settings, out = self.tape.pop()
            d_out = self.taken(out)
            if all(d is None for d in (d_out if isinstance(out, tuple) else [d_out])):
                raise TypeError(
                    f"{operation.name} made a result that nothing used: was it copied outside an operation?"
                )
            if operation.name in self.recompute:
                again = operation.definition(self, *arrays, **settings)  # what is inside is next on the tape
                for array, d in pairs(again, d_out):
                    self.add(array, d)
                continue
            d_arrays = self.inner.run(operation.gradient_of, (d_out, *arrays), settings)
            for array, d in pairs(arrays, d_arrays):
                self.add(array, d)

    def add(self, array, d) -> None:
        """To the gradient of an array; nothing happens where it is a constant."""
        if twin := self.twin_of(array):
            twin.add(array, d, self.xp)

    def taken(self, out):
        """The gradient of a result, which nobody will ask for again."""
        if isinstance(out, (tuple, list)):
            return type(out)([self.taken(each) for each in out])
        twin = self.twins.pop(id(owner(out, self.xp)), None)
        return twin and twin.gradient

    def twin_of(self, array) -> Twin | None:
        return self.twins.get(id(owner(array, self.xp)))


class Twin:
    """A piece of memory, and one like it, once it is needed, for its gradient."""

    def __init__(self, memory, gradient=None):
        self.memory, self.gradient = memory, gradient

    def add(self, array, d, xp) -> None:
        whole = array.size == self.memory.size and array.flags.c_contiguous and self.memory.flags.c_contiguous
        if self.gradient is None and whole:
            self.gradient = xp.ascontiguousarray(d).reshape(self.memory.shape)
            return
        if self.gradient is None:
            self.gradient = xp.zeros_like(self.memory)
        view = self.view(array, xp)
        view += d

    def view(self, array, xp):
        """What the array is of the memory, of the gradient."""
        if array.strides == self.memory.strides and array.shape == self.memory.shape:
            return self.gradient
        flat = self.gradient.ravel(order="K")  # a view: memory that somebody owns has no gaps
        start = (address(array) - address(self.memory)) // array.itemsize
        return xp.lib.stride_tricks.as_strided(flat[start:], array.shape, array.strides)


def owner(array, xp):
    """The array that a view, or a view of a view, belongs to."""
    while isinstance(base := getattr(array, "base", None), xp.ndarray):
        array = base
    return array


def address(array) -> int:
    return array.__array_interface__["data"][0] if hasattr(array, "__array_interface__") else array.data.ptr


def leaves(value) -> Iterator:
    """The floating point arrays in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves(each)
    elif getattr(getattr(value, "dtype", None), "kind", "") == "f":
        yield value


def pairs(array, d) -> Iterator[tuple]:
    """Each array of a nested argument with its gradient, as far as it has one.

    >>> list(pairs(("ids", ["k1", "k2"]), (None, [1, 2])))
    [('k1', 1), ('k2', 2)]
    """
    if isinstance(d, (tuple, list)):
        for each in zip(array, d):
            yield from pairs(*each)
    elif isinstance(d, SimpleNamespace):
        for name, branch in vars(d).items():
            yield from pairs(getattr(array, name), branch)
    elif d is not None:
        yield array, d
