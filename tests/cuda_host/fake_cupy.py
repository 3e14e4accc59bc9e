"""A stand-in for CuPy without a GPU: what CuPy would refuse, or spoil without a word, is refused here with a reason.

    xp = FakeCupy()            has what `import cupy` has, as far as this project uses it
    backends.cuda.Cuda(xp)     the whole backend runs on it: kernels through `host.py`, graphs through `fake_graph.py`

Arrays lie in NumPy's memory, but NumPy cannot get at them: a NumPy array beside one of these in an operation is an
error, as with CuPy. Stricter than CuPy, because there each of these would be a wrong number or a slow program:

* functions, methods and keywords that are not in the tables below (a test compares the tables with the real CuPy)
* float64 (`allow_float64`), and kernels given Python numbers, arrays with gaps, or too many threads
* while a graph is captured: whatever waits for the device, copies from the host, or takes memory of the common pool
* a replay that touches memory that has been given back meanwhile
* memory that another stream writes, before anybody has waited for it
"""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np

from tests.cuda_host.fake_graph import Capture, CaptureError, Cuda, Owner

# What CuPy has, and with which keywords. Ufuncs: CuPy has no `where=`.
UFUNCS = """abs add cos divide exp greater isfinite isnan less log logical_and logical_not maximum minimum multiply
negative power rint sin sqrt subtract tanh""".split()
FUNCTIONS = {
    "amax": {"axis", "keepdims"}, "arange": {"dtype"}, "argmax": {"axis"}, "argsort": {"axis", "kind"},
    "array": {"dtype"},
    "asarray": {"dtype"}, "ascontiguousarray": set(), "clip": set(), "concatenate": {"axis"}, "copyto": {"where"},
    "count_nonzero": set(), "cumsum": {"axis"}, "empty": {"dtype"}, "empty_like": {"dtype", "shape"},
    "flatnonzero": set(), "full": {"dtype"}, "full_like": {"dtype", "shape"}, "matmul": {"out"},
    "max": {"axis", "keepdims"}, "mean": {"axis", "keepdims"}, "nonzero": set(), "ones": {"dtype"},
    "partition": {"axis"}, "put_along_axis": {"axis"}, "repeat": {"axis"}, "searchsorted": {"side"}, "stack": {"axis"},
    "sum": {"axis", "keepdims"}, "take_along_axis": {"axis"}, "where": set(), "zeros": {"dtype"},
    "zeros_like": {"dtype", "shape"},
}  # fmt: skip
METHODS = {
    "all": {"axis"}, "any": {"axis"}, "argmax": {"axis"}, "argsort": {"axis", "kind"}, "astype": {"copy"},
    "copy": set(),
    "fill": set(), "max": {"axis", "keepdims"}, "mean": {"axis", "keepdims"}, "min": {"axis", "keepdims"},
    "ravel": set(), "reshape": set(), "sum": {"axis", "keepdims"}, "swapaxes": set(), "transpose": set(), "view": set(),
}  # fmt: skip
DTYPES = "bool_ float16 float32 float64 int8 int16 int32 int64 intp uint8 uint16 uint32 uint64".split()
CONSTANTS = {"inf": np.inf, "nan": np.nan, "pi": np.pi, "newaxis": None}
WAIT = {"nonzero", "flatnonzero"}  # the shape of the result is data: the host waits for it
WRITE = {"copyto", "put_along_axis", "fill"}  # their first argument is written
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class ndarray:
    """An array of the device. `memory` is NumPy's, for this file, the host library and nobody else."""

    def __init__(self, device: FakeCupy, memory: np.ndarray, owner: Owner):
        self.device, self.memory, self.owner = device, memory, owner

    shape = property(lambda self: self.memory.shape)
    dtype = property(lambda self: self.memory.dtype)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    nbytes = property(lambda self: self.memory.nbytes)
    itemsize = property(lambda self: self.memory.itemsize)
    strides = property(lambda self: self.memory.strides)
    flags = property(lambda self: self.memory.flags)
    base = property(lambda self: self.memory.base)
    data = property(lambda self: SimpleNamespace(ptr=self.memory.ctypes.data))
    T = property(lambda self: self.device.compute(np.transpose, (self,), {}))

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(f"the stand-in has no ndarray.{name}")
        allowed, method = METHODS[name], getattr(np.ndarray, name)

        def call(*arguments, **keywords):
            check_keywords(f"ndarray.{name}", keywords, allowed)
            return self.device.compute(method, (self, *arguments), keywords, writes=self if name in WRITE else None)

        return call

    def __getitem__(self, index):
        if any(part.dtype == bool for part in flat(index) if isinstance(part, ndarray)):
            self.device.wait("indexing by a mask")
        return self.device.compute(np.ndarray.__getitem__, (self, index), {})

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.size > 1:
            raise TypeError("NumPy arrays are not assigned to device arrays: use set() or asarray()")
        masked = any(part.dtype == bool for part in flat(index) if isinstance(part, ndarray))
        if masked and isinstance(value, ndarray) and value.ndim:
            self.device.wait("setting by a mask")
        self.device.compute(np.ndarray.__setitem__, (self, index, value), {}, writes=self)

    def __iter__(self):
        return (self[row] for row in range(len(self)))

    def __len__(self):
        return len(self.memory)

    def get(self, stream=None, out=None, blocking=True):
        """On the host. Not blocking: `out` holds it once somebody has waited for the stream."""
        (stream or self.device.cuda.current).uses(self.owner)
        if blocking:
            self.device.wait("get")
            return self.memory.copy()
        return self.device.cuda.copy_later(self.memory, out, stream)

    def set(self, values: np.ndarray, stream=None):
        """From the host."""
        if not isinstance(values, np.ndarray) or values.dtype != self.dtype or values.shape != self.shape:
            raise TypeError("set() wants a NumPy array of the same shape and type")
        if not (values.flags.c_contiguous and self.memory.flags.c_contiguous):
            raise TypeError("set() wants arrays without gaps")
        self.device.refuse_in_capture("copying from the host")
        stream = stream or self.device.cuda.current
        stream.uses(self.owner)
        np.copyto(self.memory, values)
        self.owner.written = stream.writes()

    def item(self):
        self.device.cuda.current.uses(self.owner)
        self.device.wait("item")
        return self.memory.item()

    def __int__(self):
        return int(self.item())

    def __index__(self):
        raise TypeError("a device array is no index; int() it, which waits for the device")

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        return bool(self.item())

    def __repr__(self):
        return f"<device {self.memory!r}>"

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        if "out" in keywords:
            (keywords["out"],) = keywords["out"]
        return getattr(self.device, ufunc.__name__)(*inputs, **keywords)

    def __array_function__(self, function, types, arguments, keywords):
        return getattr(self.device, function.__name__)(*arguments, **keywords)


def operator(name: str, in_place: bool):
    method = getattr(np.ndarray, name)

    def run(self, *others):
        if any(isinstance(other, (list, tuple)) for other in others):
            return NotImplemented
        if name == "__matmul__" and BFLOAT16 in (self.dtype, others[0].dtype) and max(self.ndim, others[0].ndim) > 2:
            raise TypeError("CuPy cannot multiply stacks of bfloat16 matrices")
        out = self.device.compute(method, (self, *others), {}, writes=self if in_place else None)
        return self if in_place else out

    return run


for symbol in "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul".split():
    setattr(ndarray, f"__{symbol}__", operator(f"__{symbol}__", False))
    setattr(ndarray, f"__r{symbol}__", operator(f"__r{symbol}__", False))
    if symbol not in ("matmul", "pow"):
        setattr(ndarray, f"__i{symbol}__", operator(f"__i{symbol}__", True))
for symbol in "neg invert abs eq ne lt le gt ge".split():
    setattr(ndarray, f"__{symbol}__", operator(f"__{symbol}__", False))
ndarray.__hash__ = object.__hash__


class FakeCupy:
    """The module. Each instance is a device of its own.

    allow_float64   let results be in float64 that nobody asked for by name
    waits           how often the host has waited for the device
    """

    __name__, ndarray, __version__ = "cupy", ndarray, "14.2.0"

    def __init__(self, allow_float64: bool = False, memory: int = 1 << 33):
        self.allow_float64, self.waits = allow_float64, 0
        self.cuda = Cuda(self, memory)
        self.capture: Capture | None = None

    def __getattr__(self, name):
        if name in DTYPES:
            return getattr(np, name)
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name not in UFUNCS and name not in FUNCTIONS:
            raise AttributeError(f"the stand-in has no {name}: add it to its tables if CuPy has it")
        allowed, function = FUNCTIONS.get(name, {"out", "dtype"}), getattr(np, name)

        def call(*arguments, **keywords):
            check_keywords(name, keywords, allowed)
            if name in ("array", "asarray") and not isinstance(arguments[0], ndarray):
                self.refuse_in_capture("copying from the host")
                return self.own(np.array(*arguments, **keywords), asked(arguments, keywords))
            if name in WAIT:
                self.wait(name)
            if name == "argsort" and keywords.get("kind") not in (None, "stable"):
                raise ValueError("CuPy's argsort is stable, and knows no other kind")
            return self.compute(function, arguments, keywords, arguments[0] if name in WRITE else keywords.get("out"))

        self.__dict__[name] = call
        return call

    def asnumpy(self, array) -> np.ndarray:
        return array.get() if isinstance(array, ndarray) else np.asarray(array)

    def get_default_memory_pool(self):
        return self.cuda.common_pool

    def product(self, x_TI, weight_OI, out_TO) -> None:
        """What cublasGemmEx does for `backends/cuda/cublas.py`."""
        for array in (x_TI, weight_OI, out_TO):
            if not array.flags.c_contiguous or array.dtype != (np.float32 if array is out_TO else BFLOAT16):
                raise TypeError("the product wants bfloat16, and float32 for the result, each in one piece")
        out_TO[...] = self.matmul(x_TI.astype(np.float32), weight_OI.astype(np.float32).T)

    def RawModule(self, *, code, options=()):
        from tests.cuda_host.fake_kernels import Module

        return Module(self, code, options)

    # ---- what everything goes through ----

    def compute(self, function, arguments, keywords, writes: ndarray | None = None):
        """Run a NumPy function on the arrays' memory. What is new becomes device memory, what is a view stays one."""
        inside, inside_keywords = self.unwrap(arguments), {name: self.unwrap(x) for name, x in keywords.items()}
        operands = [x for x in flat((arguments, tuple(keywords.values()))) if isinstance(x, ndarray)]
        for operand in operands:
            self.cuda.current.uses(operand.owner)
        if writes is not None and self.capture:
            self.capture.before_writing(writes.memory)
        with np.errstate(all="ignore"):  # a device gives no warnings
            out = function(*inside, **inside_keywords)
        if writes is not None:
            writes.owner.written = self.cuda.current.writes()
            if self.capture:
                self.capture.add(lambda: function(*inside, **inside_keywords), owners(operands))
            return None if out is None else writes
        if isinstance(out, tuple):
            return tuple(self.result(function, x, inside, inside_keywords, operands) for x in out)
        return self.result(function, out, inside, inside_keywords, operands)

    def result(self, function, out, inside, inside_keywords, operands):
        if not isinstance(out, (np.ndarray, np.generic)):
            return out
        for operand in operands:
            if isinstance(out, np.ndarray) and out.dtype.kind != "O" and np.may_share_memory(out, operand.memory):
                return ndarray(self, out, operand.owner)
        array = self.own(np.asarray(out), asked(inside, inside_keywords))
        if self.capture:
            action = lambda: np.copyto(array.memory, function(*inside, **inside_keywords))  # noqa: E731
            self.capture.add(action, owners([*operands, array]))
        return array

    def own(self, memory: np.ndarray, asked: bool = False) -> ndarray:
        """Fresh memory of the device."""
        if memory.dtype == np.float64 and not self.allow_float64 and not asked:
            raise TypeError("an operation gave float64, which nothing here means to")
        return ndarray(self, memory, self.cuda.take(memory))

    def wait(self, why: str) -> None:
        """The host waits for the device."""
        self.refuse_in_capture(f"{why}, which waits for the device,")
        self.waits += 1

    def refuse_in_capture(self, what: str) -> None:
        if self.capture:
            raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what} while a graph is captured")

    def unwrap(self, value):
        if isinstance(value, ndarray):
            if value.device is not self:
                raise TypeError("an array of another device")
            return value.memory
        if isinstance(value, np.ndarray):
            raise TypeError(
                f"Unsupported type {type(value)}: a NumPy array of shape {value.shape} beside device arrays"
            )
        if isinstance(value, (tuple, list)):
            return type(value)(self.unwrap(item) for item in value)
        return value


def owners(arrays) -> list[Owner]:
    return [array.owner for array in arrays]


def asked(arguments, keywords) -> bool:
    """Whether float64 is among what was asked for, or was there already."""
    given = [x.dtype if isinstance(x, np.ndarray) else x for x in (*flat(arguments), *keywords.values())]
    return any(x is np.float64 or (isinstance(x, np.dtype) and x == np.float64) for x in given)


def flat(value):
    """All that is inside nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def check_keywords(name: str, keywords: dict, allowed: set) -> None:
    if strangers := keywords.keys() - allowed:
        raise TypeError(f"{name}: CuPy has no keyword {', '.join(sorted(strangers))} there, or nobody has looked it up")
