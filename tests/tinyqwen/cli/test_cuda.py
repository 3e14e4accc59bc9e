"""`--backend cuda` from the command line, on the stand-in for CuPy; and what is said where there is no GPU."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

import backends
from backends import cuda, nvidia
from backends.cuda import Cuda, ceilings
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tests.helpers import dense_config
from tinyqwen.bench import gpu as measured
from tinyqwen.cli import bench_gpu
from tinyqwen.evaluate.likelihood import log_likelihoods
from tinyqwen.runtime import load

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
    assert (code, out) == (4, "") and "kB are available" in err and gpu.cuda.free == 20_000


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


# ---- watching, comparing, asking ----


@pytest.fixture
def quick(gpu, monkeypatch):
    """Ceilings of arrays that a host multiplies in a moment."""
    monkeypatch.setattr(ceilings.product_peak, "__defaults__", (64, 1))
    monkeypatch.setattr(ceilings.read_bandwidth, "__defaults__", (1 << 20, 1))
    return gpu


@pytest.mark.parametrize("flags", [(), ("--dtype", "bf16"), ("--dtype", "int8"), ("--dtype", "int4")])
def test_trace_waits_for_each_operation_of_a_gpu(tinyqwen, folder, quick, monkeypatch, tmp_path, flags):
    waited = []
    monkeypatch.setattr(Cuda, "settle", lambda self: waited.append(self.stream.synchronize()))
    file = tmp_path / "ops.jsonl"
    code, out, err = tinyqwen(
        "trace", "-m", folder, "--backend", "cuda", "--raw", "--decode", 2, *flags, "--jsonl", file, "hi"
    )
    assert code == 0, err
    assert "backend cuda" in out and "this GPU, measured now" in out and "self_attn" in out
    assert len(waited) >= len([line for line in file.read_text().splitlines() if '"operation"' in line]) > 20


@pytest.mark.parametrize("view", ["attention", "lens"])
def test_what_a_gpu_computed_can_be_looked_at(tinyqwen, folder, gpu, view):
    asked, seen = ("trace", "-m", folder, "--raw", "--decode", 2, "--view", view, "hi"), {}
    for backend in ("numpy", "cuda"):
        code, seen[backend], err = tinyqwen(*asked, "--backend", backend, "--kv-dtype", "f32")
        assert code == 0, err
    assert seen["cuda"] == seen["numpy"]
    for stored in ("bf16", "int8", "int4"):
        code, _, err = tinyqwen(*asked, "--backend", "cuda", "--dtype", stored)
        assert code == 0, err


def test_trace_explains_an_operation_and_writes_a_page_of_a_gpu(tinyqwen, folder, quick, tmp_path):
    asked = "trace", "-m", folder, "--backend", "cuda", "--raw", "--decode", 2
    code, _, err = tinyqwen(*asked, "--explain", "layers.0.self_attn.attention.scores", "hi")
    assert code == 0, err
    code, _, err = tinyqwen(*asked, "--html", tmp_path / "page.html", "--chrome", tmp_path / "timeline.json", "hi")
    assert code == 0, err
    assert "cuda backend" in (tmp_path / "page.html").read_text()


def test_chat_watches_an_answer_of_a_gpu(tinyqwen, folder, quick, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/trace\nhello\n")))
    code, _, err = tinyqwen("chat", "-m", folder, "--backend", "cuda", "--seed", 5, "-n", 3)
    assert code == 0 and "self_attn" in err, err


@pytest.mark.parametrize("flags", [(), ("--dtype", "int8"), ("--yarn", 2)], ids=["f32", "int8", "yarn"])
def test_diff_finds_a_gpu_and_the_definitions_alike(tinyqwen, folder, gpu, flags):
    code, out, err = tinyqwen("diff", "-m", folder, "--a", "cuda", "--b", "numpy", "--tokens", 5, "--decode", 2, *flags)
    assert code == 0, out + err
    assert "A cuda, B numpy" in out and "all 7 agree" in out


def test_diff_finds_what_is_wrong_on_a_gpu(tinyqwen, folder, gpu, monkeypatch):
    code, out, _ = tinyqwen("diff", "-m", folder, "--a", "cuda", "--b", "cuda:float64", "--tokens", 5)
    assert (code, out) == (2, "")
    right = backends.get("cuda").bodies["swiglu"]
    monkeypatch.setattr(cuda, "bodies", lambda: {"swiglu": lambda backend, gate, up: right(backend, up, gate)})
    code, out, _ = tinyqwen("diff", "-m", folder, "--a", "cuda", "--b", "numpy", "--tokens", 5)
    assert code == 1 and "bug: prefill, layers.0.mlp.swiglu" in out


def test_needles_are_found_on_a_gpu_as_on_the_processor(tinyqwen, folder, gpu):
    found = {}
    for backend in ("cpu", "cuda", "auto"):
        code, out, err = tinyqwen(
            "needle", "-m", folder, "--backend", backend, "--task", "keys", "--lengths", 40, "--depths", "0,100",
            "--kv-dtype", "f32", "--json", "-", "-q",
        )  # fmt: skip
        assert code == 0, err
        facts = json.loads(out)
        [way] = facts["ways"]
        found[backend] = facts["backend"], [trial["rank"] for cell in way["cells"] for trial in cell["trials"]]
    assert found["cuda"] == found["auto"] == ("cuda", found["cpu"][1])


def test_likelihoods_are_those_of_the_processor(folder, gpu):
    requests = [([5, 6, 7], [8, 9]), ([5, 6], [7])]
    mine, theirs = (log_likelihoods(load(folder, backend=name), requests) for name in ("cuda", "cpu"))
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert [log_p for log_p, _ in mine] == pytest.approx([log_p for log_p, _ in theirs], rel=1e-4)


@pytest.mark.parametrize("name", ["cuda", "cupy"])
def test_training_on_a_gpu_is_refused_with_what_there_is(tinyqwen, folder, gpu, name):
    code, out, err = tinyqwen("train", "sft", "-m", folder, "--data", "x", "out", "--backend", name)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "runs on the processor only; take --backend cpu" in err


@pytest.mark.parametrize("asked", [("trace", "hi"), ("needle",), ("diff", "--a", "cuda", "--tokens", 3)])
def test_without_a_gpu_it_is_one_line(tinyqwen, folder, monkeypatch, asked):
    monkeypatch.setattr(nvidia, "driver_version", lambda: None)
    more = () if asked[0] == "diff" else ("--backend", "cuda")
    code, out, err = tinyqwen(*asked, "-m", folder, *more)
    assert (code, out) == (2, "") and "no NVIDIA driver" in err and len(err.splitlines()) == 1
