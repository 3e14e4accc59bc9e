"""Mistakes made on purpose, each of which must be found: else the checks would pass whatever a kernel does."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from backends.cuda import source
from tests.cuda_host import nvrtc
from tests.cuda_host.host import HERE, KINDS, ORDERS, Module, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
SANITIZERS = {"races": "libtsan.so", "bounds": "libasan.so"}


@pytest.fixture(scope="module")
def bugs():
    return Module((HERE / "bugs.cu").read_text())


def run(bugs, name, *arguments, threads=64):
    bugs.get_function(name)((1,), (threads,), arguments)


def test_a_missing_barrier_gives_wrong_numbers_that_depend_on_the_order(bugs):
    x, results = np.arange(64, dtype=np.float32), []
    for order in ORDERS:
        y = np.zeros(64, np.float32)
        bugs.order = order
        run(bugs, "missing_barrier_kernel", x, y)
        results.append(y.tolist())
    assert x[::-1].tolist() not in results and results[0] != results[1]


def test_shared_memory_that_nobody_wrote_is_not_a_number(bugs):
    for _ in range(2):
        y = np.zeros(64, np.float32)
        run(bugs, "unwritten_kernel", y)
        assert np.isnan(y[0]) and not y[1:].any()


def test_threads_that_wait_for_each_other_are_found(bugs):
    with pytest.raises(RuntimeError, match="none can go on"):
        run(bugs, "divided_barrier_kernel", np.zeros(64, np.float32))
    with pytest.raises(RuntimeError, match="ended before a barrier"):
        run(bugs, "early_end_kernel", np.zeros(64, np.float32), np.int32(48))


def test_arguments_of_another_size_or_kind_are_refused(bugs):
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    run(bugs, "scale_kernel", x, y, np.float32(2))
    assert (y == 2).all()
    for wrong in (2.0, 2, np.float64(2), np.int64(2), x):
        with pytest.raises(TypeError, match=re.escape("its parameters have [8, 8, 4]")):
            run(bugs, "scale_kernel", x, y, wrong)
    with pytest.raises(TypeError, match="has gaps"):
        run(bugs, "scale_kernel", np.ones(128, np.float32)[::2], y, np.float32(2))
    with pytest.raises(TypeError, match="an array"):
        run(bugs, "scale_kernel", np.int64(7), y, np.float32(2))
    with pytest.raises(RuntimeError, match="a GPU refuses"):
        run(bugs, "scale_kernel", x, y, np.float32(2), threads=2048)


def in_a_process_of_its_own(kind, what):
    """The sanitizer's runtime must be loaded before Python; addresses as plain as it likes them."""
    found = subprocess.run(
        ["g++", f"-print-file-name={SANITIZERS[kind]}"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"g++ has no {SANITIZERS[kind]} here")
    options = {"TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=0:exitcode=66", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **options, "TINYQWEN_CUDA_HOST_KIND": kind}
    plain = ["setarch", "-R"] if kind == "races" else []
    command = [*plain, "env", f"LD_PRELOAD={found}", sys.executable, "-m", "tests.cuda_host.launches", what]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent, timeout=600)


@pytest.mark.parametrize(("kind", "what", "words"), [
    ("races", "missing_barrier_kernel", r"data race .*bugs\.cu:\d+ in missing_barrier_kernel"),
    ("bounds", "overrun_kernel", r"heap-buffer-overflow[^#]*#0 .*overrun_kernel.*bugs\.cu:\d+"),
])  # fmt: skip
def test_the_sanitizers_name_the_line(kind, what, words):
    assert kind in KINDS
    done = in_a_process_of_its_own(kind, what)
    assert done.returncode == 66 and re.search(words, done.stderr), done.stderr[-2000:]


@pytest.mark.parametrize("kind", SANITIZERS)
def test_the_sanitizers_find_nothing_in_our_kernels(kind):
    done = in_a_process_of_its_own(kind, "all")
    assert done.returncode == 0 and "all fine" in done.stdout, done.stderr[-4000:]


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install 'tinyqwen[test]'")
def test_what_no_machine_knows_is_refused():
    with pytest.raises(ValueError, match=r"rms_norm\.cu\(\d+\)"):
        nvrtc.compiled(source.program("rms_norm").replace("sqrtf(", "sqroot("), "sm_90")
    with pytest.raises(ValueError, match="globe"):
        nvrtc.compiled(source.program("linear").replace("ld.global.nc", "ld.globe.nc"), "sm_90")
