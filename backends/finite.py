"""A wrapper that finds where numbers stop being numbers.

NaN spreads: one bad weight in layer 3 makes every logit NaN, and the model prints "!!!!". Run the same step again
through this wrapper and it names the first operation whose result holds NaN or +inf, and the weight that brought it.
(-inf is no alarm: masks are made of it.)
"""

from __future__ import annotations

from backends.interface import Backend, Operation
from backends.packed import Packed
from backends.places import Places
from backends.quantised import Quantised


class NotFinite(ArithmeticError):
    """The first operation, in order of execution, whose result is not finite; `str()` says which and why."""


class FirstNotFinite(Places):
    """Raises NotFinite at the first result with NaN or +inf.

    >>> import numpy as np
    >>> scale = Operation(lambda backend, x, weight: x * weight); scale.name = "scale"
    >>> weight = np.float32([1, np.nan])
    >>> scale(FirstNotFinite(Backend(np), {id(weight): "norm.weight"}), np.float32([1, 1]), weight)
    Traceback (most recent call last):
    backends.finite.NotFinite: in norm, scale gave 1 of 2 values not finite: norm.weight itself holds 1
    """

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        path = self.place(operation, arrays)
        self.inside.append(path)
        out = super().run(operation, arrays, settings, door)
        self.inside.pop()
        for result in out if isinstance(out, (tuple, list)) else [out]:
            if bad := self.count(result):
                known = [(self.names[id(array)], self.count(array)) for array in arrays if id(array) in self.names]
                culprits = [f"{name} itself holds {count}" for name, count in known if count]
                inputs = any(self.count(array) for array in arrays)
                reason = "; ".join(culprits) or ("an input was not finite" if inputs else "all inputs were finite")
                raise NotFinite(f"in {path}, {operation.name} gave {bad} of {result.size} values not finite: {reason}")
        return out

    def count(self, array) -> int:
        """How many values of an array are NaN or +inf; 0 for what is not an array of floating point numbers.

        Of a quantised matrix, how many scales; of a packed one, how many of the numbers kept as they were.
        """
        if isinstance(array, Packed):
            array = array.raw_RC
        if isinstance(array, Quantised):
            array = array.scales
        dtype = getattr(array, "dtype", None)
        if getattr(dtype, "kind", "") != "f" and dtype != "bfloat16":  # which is of no kind that NumPy knows
            return 0
        xp = self.xp
        return int(xp.count_nonzero(xp.isnan(array) | (array == xp.inf)))
