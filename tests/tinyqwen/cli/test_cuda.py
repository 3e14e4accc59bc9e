"""`--backend cuda` from the command line, on the stand-in for CuPy; and what is said where there is no GPU."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from backends import nvidia
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tests.helpers import dense_config
from tinyqwen.bench import gpu as measured
from tinyqwen.cli import bench_gpu

GREEDY = "--raw", "--greedy", "-n", 8, "--json", "hi"
SAMPLED = "--raw", "--temperature", 0.8, "--top-p", 0.9, "--top-k", 5, "--seed", 3, "-n", 8, "--json", "hi"


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU."""
    if why := host.missing():
        pytest.skip(why)
    device = FakeCupy()
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(nvidia, "open_cupy", lambda: device)
    return device


@pytest.mark.parametrize("flags", [GREEDY, SAMPLED, ("--dtype", "bf16", *GREEDY), ("--dtype", "int8", *GREEDY)],
                         ids=["greedy", "sampled", "bf16", "int8"])  # fmt: skip
def test_the_gpu_says_what_the_processor_says(tinyqwen, folder, gpu, flags):
    said = {}
    for backend in ("cpu", "cuda"):
        code, out, err = tinyqwen("generate", "-m", folder, "--backend", backend, *flags)
        assert code == 0, err
        said[backend] = json.loads(out)
        assert said[backend]["backend"] == backend
    assert said["cuda"]["tokens"] == said["cpu"]["tokens"]


def test_auto_is_the_gpu_where_there_is_one(tinyqwen, folder, gpu):
    assert json.loads(tinyqwen("generate", "-m", folder, *GREEDY)[1])["backend"] == "cuda"


def test_auto_says_why_it_is_not_the_gpu(tinyqwen, folder, monkeypatch):
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(nvidia, "driver_version", lambda: (12, 4))
    monkeypatch.setattr(nvidia, "wheels", dict)
    code, out, err = tinyqwen("generate", "-m", folder, *GREEDY)
    assert code == 0 and json.loads(out)["backend"] == "cpu"
    assert "not the GPU: CuPy is not installed" in err and "pip install 'tinyqwen[cuda12]'" in err


def test_auto_says_nothing_where_there_is_no_gpu(tinyqwen, folder, monkeypatch):
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: False)
    code, out, err = tinyqwen("generate", "-m", folder, *GREEDY)
    assert (code, json.loads(out)["backend"], err) == (0, "cpu", "")


@pytest.mark.parametrize(("driver", "installed", "said"), [
    (None, {}, "no NVIDIA driver"),
    ((12, 4), {}, "pip install 'tinyqwen[cuda12]'"),
    ((13, 0), {}, "pip install 'tinyqwen[cuda13]'"),
    ((12, 4), {"cupy-cuda13x": "14.2.0"}, "pip uninstall -y cupy-cuda13x"),
    ((13, 0), {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}, "spoil each other"),
    ((13, 0), {"cupy-cuda12x": "13.6.0"}, "14.2 is needed"),
])  # fmt: skip
def test_each_obstacle_is_one_line_with_what_to_do(tinyqwen, folder, monkeypatch, driver, installed, said):
    monkeypatch.setattr(nvidia, "driver_version", lambda: driver)
    monkeypatch.setattr(nvidia, "wheels", lambda: installed)
    code, out, err = tinyqwen("generate", "-m", folder, "--backend", "cuda", *GREEDY)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_an_older_wheel_on_a_newer_driver_is_fine():
    assert nvidia.obstacle((13, 1), {"cupy-cuda12x": "14.2.0"}) is None


def test_a_model_that_the_device_cannot_hold_is_refused_with_numbers(tinyqwen, folder, gpu, monkeypatch):
    gpu.cuda.free = 20_000
    code, out, err = tinyqwen("generate", "-m", folder, "--backend", "cuda", *GREEDY)
    assert (code, out) == (4, "") and "GB are available" in err and gpu.cuda.free == 20_000


def test_some_layers_on_the_processor_say_the_same(tinyqwen, folder, gpu):
    alone = json.loads(tinyqwen("generate", "-m", folder, "--backend", "cpu", *GREEDY)[1])
    code, out, err = tinyqwen("generate", "-m", folder, "--backend", "cuda", "--gpu-layers", 1, *GREEDY)
    assert code == 0, err
    assert json.loads(out)["tokens"] == alone["tokens"]


@pytest.mark.parametrize(("flags", "said"), [
    (("--backend", "cpu", "--gpu-layers", 1), "needs a GPU"), (("--backend", "cuda", "--gpu-layers", 0), "at least 1"),
])  # fmt: skip
def test_gpu_layers_that_mean_nothing_are_refused(tinyqwen, folder, gpu, flags, said):
    code, out, err = tinyqwen("generate", "-m", folder, *flags, *GREEDY)
    assert (code, out) == (2, "") and said in err


def test_a_chat_of_several_turns_says_the_same(tinyqwen, folder, gpu, monkeypatch):
    said = {}
    for backend in ("cpu", "cuda"):
        lines = io.BytesIO(b"hello there\nand again\n/undo\nsomething else\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
        code, out, err = tinyqwen("chat", "-m", folder, "--backend", backend, "--seed", 5, "-n", 12, "--top-k", 9)
        assert code == 0, err
        said[backend] = out
    assert said["cuda"] == said["cpu"] and len(said["cpu"]) > 20


def test_bench_measures_a_gpu_and_keeps_its_results(tinyqwen, gpu, monkeypatch, tmp_path):
    monkeypatch.setitem(bench_gpu.SIZES, "0.5B", SimpleNamespace(config=dense_config))
    monkeypatch.setattr(measured, "ceilings", lambda backend: measured.Limits(1e12, {"bf16": 1e15}))
    flags = "--decode", "0", "--prefill", "40", "--tokens", 2, "--results", tmp_path, "--quiet"
    code, out, err = tinyqwen("bench", "--backend", "cuda", "--size", "0.5B", *flags)
    assert code == 0, err
    assert "memory reads at 1,000 GB/s; products reach 1,000 TFLOP/s" in out and "of the ceiling" in out
    (file,) = tmp_path.glob("gpu-*.json")
    assert [row["what"] for row in json.loads(file.read_text())["rows"]] == ["decode behind 0", "prompt of 40"]


@pytest.mark.parametrize(
    "flags", [("--model", "x"), ("--against", "transformers"), ("--size", "9B"), ("--dtype", "f8")]
)
def test_bench_refuses_what_it_would_not_measure(tinyqwen, gpu, flags):
    code, out, err = tinyqwen("bench", "--backend", "cuda", *flags)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
