"""The comparison of kernels at real sizes, tried at small ones: it finds them right, and sees a wrong one."""

from __future__ import annotations

import pytest

from backends.cuda import Cuda, source
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tinyqwen.bench import gpu_kernels


@pytest.fixture(scope="module")
def cuda():
    if why := host.missing():
        pytest.skip(why)
    return Cuda(FakeCupy())


def test_all_kernels_are_right_and_all_are_asked(cuda, monkeypatch):
    launched, launch = set(), cuda.launch
    monkeypatch.setattr(cuda, "launch", lambda name, *rest, **more: (launched.add(name), launch(name, *rest, **more)))
    rows = list(gpu_kernels.compared(cuda, gpu_kernels.cases(gpu_kernels.SMALL, longest=150, prompt=20)))
    assert not [row for row in rows if not row["fine"]] and len({row["kernel"] for row in rows}) > 60
    assert source.KERNELS.keys() - launched == {
        "advance_kernel",
        "read_kernel",
    }


def test_a_wrong_kernel_and_one_that_breaks_are_said(cuda, monkeypatch):
    def wrong(backend, x_TD, weight_D, eps):
        return x_TD * 1.001

    def broken(backend, x_TD, y_TD):
        raise RuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(cuda, "bodies", {**cuda.bodies, "rms_norm": wrong, "add": broken})
    some = [
        case for case in gpu_kernels.cases(gpu_kernels.SMALL, longest=9) if case.name in ("rms_norm", "add", "swiglu")
    ]
    first, second, third = gpu_kernels.compared(cuda, iter(some))
    assert not first["fine"] and first["error"] > first["allowed"]
    assert not second["fine"] and "IllegalAddress" in second["why"] and third["fine"]
