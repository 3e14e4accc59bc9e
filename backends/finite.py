"""A wrapper that finds where numbers stop being numbers.

NaN spreads: one bad weight in layer 3 makes every logit NaN, and the model prints "!!!!". Run the same step again
through this wrapper and it names the first operation whose result holds NaN or +inf, and the weight that brought it.
(-inf is no alarm: masks are made of it.)
"""

from __future__ import annotations

from backends.interface import Backend, Operation, Wrapper


class NotFinite(ArithmeticError):
    """The first operation, in order of execution, whose result is not finite; `str()` says which and why."""


class FirstNotFinite(Wrapper):
    """Raises NotFinite at the first result with NaN or +inf.

    names   what to call the arrays and trees that the model was given: {id(object): name}

    >>> import numpy as np
    >>> scale = Operation(lambda backend, x, weight: x * weight)
    >>> weight = np.float32([1, np.nan])
    >>> scale.name = "scale"
    >>> scale(FirstNotFinite(Backend(np), {id(weight): "norm.weight"}), np.float32([1, 1]), weight)
    Traceback (most recent call last):
    backends.finite.NotFinite: scale gave 1 of 2 values not finite: norm.weight itself holds 1
    """

    def __init__(self, inner: Backend, names: dict[int, str]):
        super().__init__(inner)
        self.names = names
        self.inside: list[str] = []

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        known = [(self.names[id(array)], array) for array in arrays if id(array) in self.names]
        self.inside.append(known[0][0] if known else operation.name)
        out = super().run(operation, arrays, settings, door)
        self.inside.pop()
        for result in out if isinstance(out, (tuple, list)) else [out]:
            bad = self.count(result)
            if bad:
                where = next((place for place in reversed(self.inside) if "." in place), None)
                message = f"{operation.name} gave {bad} of {result.size} values not finite"
                culprits = [f"{name} itself holds {self.count(array)}" for name, array in known if self.count(array)]
                inputs = any(self.count(array) for array in arrays)
                reason = "; ".join(culprits) or ("an input was not finite" if inputs else "all inputs were finite")
                raise NotFinite(f"{f'in {where}, ' if where else ''}{message}: {reason}")
        return out

    def count(self, array) -> int:
        """How many values of an array are NaN or +inf; 0 for what is not an array of floating point numbers."""
        if getattr(getattr(array, "dtype", None), "kind", "") != "f":
            return 0
        xp = self.xp
        return int(xp.count_nonzero(xp.isnan(array) | (array == xp.inf)))
