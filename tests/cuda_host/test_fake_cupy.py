"""The stand-in for CuPy refuses what CuPy refuses, and what CuPy would do wrong; it offers nothing that CuPy lacks."""

import importlib.util
import inspect
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.cuda_host import host
from tests.cuda_host.fake_cupy import DTYPES, FUNCTIONS, METHODS, UFUNCS, FakeCupy
from tests.cuda_host.fake_graph import CaptureError, OutOfMemoryError
from tests.cuda_host.fake_kernels import Module

needs_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")

DOUBLE = """
extern "C" __global__ void double_kernel(const float* x, float* out, int n, float scale) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = 2 * x[i] * scale;
}
"""


@pytest.fixture
def xp():
    return FakeCupy()


@pytest.fixture
def stream(xp):
    return xp.cuda.Stream(non_blocking=True).use()


@pytest.fixture
def double(xp, stream):
    if why := host.missing():
        pytest.skip(why)
    return Module(xp, DOUBLE, ()).get_function("double_kernel")


def captured(xp, stream, function):
    """A graph of what the function does."""
    pool = xp.cuda.MemoryPool()
    with xp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            function()
        finally:
            graph = stream.end_capture()
    return graph, pool


# ---- nothing that CuPy lacks ----


@needs_cupy
@pytest.mark.parametrize("name", [*FUNCTIONS, *UFUNCS, *DTYPES])
def test_cupy_has_each_function_with_these_keywords(name):
    import cupy

    function = getattr(cupy, name)
    if isinstance(function, cupy.ufunc):
        assert "out=None" in function.__doc__ and "where" not in function.__doc__
    elif name in FUNCTIONS:
        keywords = inspect.signature(function).parameters
        assert FUNCTIONS[name] <= set(keywords)


@needs_cupy
@pytest.mark.parametrize("name", METHODS)
def test_cupys_arrays_have_each_method_with_these_keywords(name):
    import cupy

    first_line = getattr(cupy.ndarray, name).__doc__ or str(inspect.signature(getattr(cupy.ndarray, name)))
    assert METHODS[name] <= set(re.findall(r"(\w+)=", first_line.splitlines()[0]))


@needs_cupy
def test_cupy_has_what_the_backend_asks_of_its_machinery():
    from cupy import cuda

    for thing, names in {
        cuda: "MemoryPool using_allocator Stream Event alloc_pinned_memory get_current_stream is_available",
        cuda.MemoryPool: "malloc free_bytes free_all_blocks",
        cuda.Stream: "use begin_capture end_capture is_capturing record synchronize wait_event",
        cuda.Event: "synchronize",
        cuda.Graph: "launch upload",
        cuda.runtime: "memGetInfo getDeviceCount getDeviceProperties driverGetVersion runtimeGetVersion",
    }.items():
        assert not [name for name in names.split() if not hasattr(thing, name)]


# ---- arrays ----


def test_numpy_arrays_and_device_arrays_do_not_mix(xp):
    x = xp.asarray(np.ones(3, np.float32))
    for mix in (lambda: x + np.ones(3), lambda: np.ones(3) + x, lambda: xp.exp(np.ones(3)), lambda: np.asarray(x),
                lambda: x[np.array([0, 1])], lambda: x.__setitem__(slice(2), np.ones(2, np.float32))):  # fmt: skip
        with pytest.raises(TypeError):
            mix()
    assert (x * np.float32(2) + 1).get().tolist() == [3, 3, 3] and np.exp(x * 0).get().tolist() == [1, 1, 1]


def test_float64_is_refused_unless_it_is_wanted(xp):
    x = xp.asarray(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="float64"):
        x * np.float64(2)
    with pytest.raises(TypeError, match="float64"):
        xp.zeros(3)
    assert FakeCupy(allow_float64=True).zeros(3).dtype == xp.zeros(3, np.float64).dtype == np.float64


def test_what_cupy_lacks_is_refused(xp):
    x = xp.asarray(np.ones(3, np.float32))
    for missing in (lambda: x.max(initial=0), lambda: xp.exp(x, where=x > 0), lambda: xp.einsum("i->", x)):
        with pytest.raises((TypeError, AttributeError), match="CuPy"):
            missing()


def test_a_view_shares_memory_and_a_result_does_not(xp):
    x = xp.zeros((2, 3), np.float32)
    x[1, :2] = 5
    x.reshape(6)[0] = 7
    y = x + 0
    y[...] = 1
    assert x.get().tolist() == [[7, 0, 0], [5, 5, 0]]


def test_waiting_for_the_device_is_counted(xp):
    x = xp.arange(3)
    assert (int(x[1]), bool((x > 1).any()), len(xp.flatnonzero(x)), x[x > 0].shape) == (1, True, 2, (2,))
    assert xp.waits == 4


def test_memory_ends_and_is_given_back():
    xp = FakeCupy(memory=1 << 20)
    first = xp.zeros(200_000, np.float32)
    with pytest.raises(OutOfMemoryError):
        xp.zeros(200_000, np.float32)
    del first
    xp.zeros(200_000, np.float32)


# ---- streams ----


def test_what_another_stream_writes_must_be_waited_for(xp, double):
    x = xp.asarray(np.float32([1, 2, 3]))  # in the stream of the fixture
    first = xp.cuda.get_current_stream()
    second = xp.cuda.Stream(non_blocking=True).use()
    out = xp.zeros(3, np.float32)
    arguments = x, out, np.int32(3), np.float32(1)
    for use in (lambda: x + 1, lambda: double((1,), (32,), arguments), x.get, lambda: x.__setitem__(0, 1)):
        with pytest.raises(RuntimeError, match="another stream"):
            use()
    second.wait_event(first.record())
    double((1,), (32,), arguments)
    assert out.get().tolist() == [2, 4, 6]
    first.use()
    with pytest.raises(RuntimeError, match="another stream"):
        out.get()
    second.synchronize()
    assert out.get().tolist() == [2, 4, 6]


def test_each_thread_begins_in_the_default_stream(xp, stream):
    with ThreadPoolExecutor(1) as beside:
        assert beside.submit(xp.cuda.get_current_stream).result() is not stream is xp.cuda.get_current_stream()


# ---- kernels ----


def test_a_kernel_runs(xp, double):
    x, out = xp.asarray(np.float32([1, 2, 3])), xp.zeros(3, np.float32)
    double((1,), (32,), (x, out, np.int32(3), np.float32(0.5)))
    assert out.get().tolist() == [1, 2, 3]


@pytest.mark.parametrize(("place", "wrong", "why"), [
    (0, np.ones(3, np.float32), "NumPy array"),
    (0, "gaps", "gaps"),
    (2, 3, "Python int"),
    (3, 0.5, "Python float"),
    (2, np.int64(3), "arguments of"),
    (3, np.float64(0.5), "arguments of"),
    (3, None, "arguments of"),
])  # fmt: skip
def test_a_wrong_argument_is_refused(xp, double, place, wrong, why):
    """A Python float would arrive as eight bytes, and the kernel would read four of them."""
    arguments = [xp.zeros(3, np.float32), xp.zeros(3, np.float32), np.int32(3), np.float32(0.5)]
    arguments[place] = xp.zeros((3, 2), np.float32)[:, 0] if isinstance(wrong, str) else wrong
    with pytest.raises(TypeError, match=why):
        double((1,), (32,), tuple(arguments))


@pytest.mark.parametrize(("grid", "block", "shared"), [
    ((0,), (32,), 0), ((1,), (0,), 0), ((1,), (2048,), 0), ((1, 1 << 16), (32,), 0), ((1,), (32,), 50 << 10),
])  # fmt: skip
def test_a_launch_that_a_gpu_refuses_is_refused(xp, double, grid, block, shared):
    arguments = xp.zeros(3, np.float32), xp.zeros(3, np.float32), np.int32(3), np.float32(0.5)
    with pytest.raises((ValueError, RuntimeError)):
        double(grid, block, arguments, shared_mem=shared)


def test_kernels_of_one_name_share_what_they_are_allowed(xp, stream):
    """So a backend that allows one of them less takes it from the other."""
    if why := host.missing():
        pytest.skip(why)
    module, arguments = Module(xp, DOUBLE, ()), (xp.zeros(3, np.float32),) * 2 + (np.int32(3), np.float32(1))
    first, second = (module.get_function("double_kernel") for _ in range(2))
    first.max_dynamic_shared_size_bytes = 100 << 10
    second((1,), (32,), arguments, shared_mem=90 << 10)
    second.max_dynamic_shared_size_bytes = 60 << 10
    with pytest.raises(ValueError, match="nobody has allowed"):
        first((1,), (32,), arguments, shared_mem=90 << 10)


COPY = """
struct Places { const float* from; float* to; int n, unused; };
extern "C" __global__ void copy_kernel(const __grid_constant__ Places places) {
  if (threadIdx.x < places.n) places.to[threadIdx.x] = places.from[threadIdx.x];
}
"""
PLACES = [("from", np.uint64), ("to", np.uint64), ("n", np.int32), ("unused", np.int32)]


@pytest.fixture
def copy(xp, stream):
    if why := host.missing():
        pytest.skip(why)
    return Module(xp, COPY, ()).get_function("copy_kernel")


def places(x, out):
    return np.array((x.data.ptr, out.data.ptr, len(x), 0), PLACES)


def test_a_struct_is_taken_by_value(xp, copy):
    x, out = xp.arange(3).astype(np.float32), xp.zeros(3, np.float32)
    copy((1,), (32,), (places(x, out),))
    assert out.get().tolist() == [0, 1, 2]


def test_a_struct_of_another_size_and_one_of_several_elements_are_refused(xp, copy):
    """CuPy passes NumPy arrays of one element by value, whatever their size, and no others."""
    x = xp.zeros(3, np.float32)
    for wrong in (np.zeros((), PLACES[:2]), np.array([places(x, x)] * 2)):
        with pytest.raises(TypeError):
            copy((1,), (32,), (wrong,))


def test_parameters_that_only_new_drivers_take_are_refused(xp, stream, copy):
    text = COPY.replace("int n,", "int n, more[1024],")
    large = Module(xp, text, ()).get_function("copy_kernel")
    fields = [*PLACES[:3], ("more", np.int32, 1024), PLACES[3]]
    with pytest.raises(TypeError, match="4096"):
        large((1,), (32,), (np.zeros((), fields),))


# ---- graphs ----


def test_a_capture_does_nothing_and_each_replay_does_it_once(xp, stream):
    x = xp.zeros(3, np.float32)

    def step():
        y = x + 1
        x[...] = y

    graph, _pool = captured(xp, stream, step)
    assert x.get().tolist() == [0, 0, 0]
    for _ in range(3):
        graph.launch()
    assert x.get().tolist() == [3, 3, 3]


def test_kernels_are_captured_too(xp, stream, double):
    x = xp.asarray(np.float32([1, 2, 3]))
    graph, _pool = captured(xp, stream, lambda: double((1,), (32,), (x, x, np.int32(3), np.float32(1))))
    assert x.get().tolist() == [1, 2, 3]
    graph.launch()
    graph.launch()
    assert x.get().tolist() == [4, 8, 12]


def test_what_waits_or_copies_cannot_be_captured(xp, stream):
    x = xp.arange(3)
    for action in (lambda: int(x[0]), lambda: x.get(), lambda: xp.flatnonzero(x), lambda: xp.asarray([1, 2]),
                   lambda: x[x > 0], lambda: x.set(np.arange(3)), stream.synchronize):  # fmt: skip
        with pytest.raises(CaptureError):
            captured(xp, stream, action)


def test_memory_of_the_common_pool_cannot_be_captured(xp, stream):
    with pytest.raises(CaptureError, match="common pool"):
        stream.begin_capture()


def test_a_graphs_pool_is_nobody_elses(xp, stream):
    _, pool = captured(xp, stream, lambda: xp.zeros(3, np.float32))
    with xp.cuda.using_allocator(pool.malloc), pytest.raises(RuntimeError, match="a graph's"):
        xp.zeros(3, np.float32)


def test_a_replay_on_memory_that_is_gone_is_refused(xp, stream):
    arrays = {"x": xp.zeros(3, np.float32), "out": xp.zeros(3, np.float32)}
    graph, _pool = captured(xp, stream, lambda: arrays["out"].__setitem__(slice(3), arrays["x"] + 1))
    graph.launch()
    del arrays["x"]
    with pytest.raises(RuntimeError, match="given back"):
        graph.launch()


def test_a_replay_knows_what_a_structs_addresses_point_to(xp, stream, copy):
    arrays = {"x": xp.arange(3).astype(np.float32), "out": xp.zeros(3, np.float32)}
    graph, _pool = captured(xp, stream, lambda: copy((1,), (32,), (places(**arrays),)))
    assert arrays["out"].get().tolist() == [0, 0, 0]
    graph.launch()
    assert arrays["out"].get().tolist() == [0, 1, 2]
    del arrays["x"]
    with pytest.raises(RuntimeError, match="given back"):
        graph.launch()


def test_results_of_a_capture_are_garbage_until_it_is_replayed(xp, stream):
    x, kept = xp.zeros(3, np.float32), []
    graph, _pool = captured(xp, stream, lambda: kept.append(x + 1))
    assert np.isnan(kept[0].get()).all()
    graph.launch()
    assert kept[0].get().tolist() == [1, 1, 1]


def test_a_copy_that_does_not_block_arrives_when_somebody_waits(xp, stream):
    x, out = xp.arange(3), np.zeros(3, np.int64)
    x.get(stream=stream, out=out, blocking=False)
    x[...] = 9
    event = stream.record()
    assert out.tolist() == [0, 0, 0]
    event.synchronize()
    assert out.tolist() == [0, 1, 2]
