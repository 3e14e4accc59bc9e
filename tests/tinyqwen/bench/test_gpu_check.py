"""The script for whoever has a GPU: stages go on where they stopped, and one that fails does not end the others."""

from __future__ import annotations

import json
from itertools import islice
from types import SimpleNamespace

import pytest

import backends
from backends.cuda import Cuda
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tests.helpers import dense_config
from tinyqwen.bench import gpu_check
from tinyqwen.bench.gpu_kernels import attentions as ATTENTIONS
from tinyqwen.bench.gpu_kernels import cases as CASES

CONFIG = dense_config(num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=32, intermediate_size=64)


@pytest.fixture
def ran(monkeypatch):
    """A machine with a GPU, on which stages are only noted; `peers` fails."""
    stages = []

    def run(stage, file):
        stages.append(stage)
        gpu_check.keep(file, stage, {"seconds": 1.0, **({"failed": "no such module"} if stage == "peers" else {})})

    monkeypatch.setattr(backends, "choose", lambda: ("cuda", None))
    monkeypatch.setattr(gpu_check, "run", run)
    return stages


def test_all_stages_and_again_only_what_failed(ran, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert gpu_check.main(["--out", str(file)]) == 1
    assert ran == list(gpu_check.STAGES) and set(json.loads(file.read_text())) == set(ran)
    ran.clear()
    assert gpu_check.main(["--out", str(file)]) == 1
    assert ran == ["peers"] and "peers: FAILED" in capsys.readouterr().err
    ran.clear()
    assert gpu_check.main(["--out", str(file), "--again", "graphs"]) == 1 and ran == ["graphs"]


def test_all_of_it_takes_less_than_ten_minutes():
    assert set(gpu_check.LIMITS) == set(gpu_check.STAGES) and sum(gpu_check.LIMITS.values()) <= 600


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(backends, "choose", lambda: ("cpu", "CuPy is not installed; pip install ..."))
    assert gpu_check.main([]) == 1
    assert capsys.readouterr().err == "gpu_check: CuPy is not installed; pip install ...\n"


def test_a_stage_that_takes_too_long_keeps_what_it_had(monkeypatch, tmp_path):
    """Beside what other stages found; and next time it is run again."""

    rows = [{"model": "0.5B", "tokens_s": 2000.0}]

    def slow():
        yield {"rows": rows}
        raise KeyboardInterrupt

    def again(stage, file):
        ran.append(stage)
        gpu_check.keep(file, stage, {"seconds": 1})

    file = tmp_path / "found.json"
    gpu_check.keep(file, "doctor", {"gpu": "none"})
    monkeypatch.setitem(gpu_check.STAGES, "decode", slow)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.inside("decode", file)
    assert json.loads(file.read_text())["decode"] == {
        "rows": [{"model": "0.5B", "tokens_s": 2000.0}],
        "unfinished": True,
    }
    assert "model 0.5B, tokens_s 2000" in file.with_suffix(".txt").read_text()
    ran = []
    monkeypatch.setattr(backends, "choose", lambda: ("cuda", None))
    monkeypatch.setattr(
        gpu_check, "run", lambda stage, file: (ran.append(stage), gpu_check.keep(file, stage, {"seconds": 1}))
    )
    gpu_check.main(["doctor", "decode", "--out", str(file)])
    assert ran == ["decode"]


def test_a_stage_that_cannot_run_says_why(tmp_path):
    """Here there is no GPU: the process of a stage fails, and its words are kept."""
    if backends.choose()[0] == "cuda":
        pytest.skip("there is a GPU")
    file = tmp_path / "found.json"
    gpu_check.run("graphs", file)
    found = gpu_check.kept(file)["graphs"]
    assert gpu_check.failed(found) and "no NVIDIA driver" in found["failed"] and "unfinished" not in found


@pytest.mark.parametrize("stage", ["ceilings", "graphs", "kernels", "decode", "tokens"])
def test_each_stage_runs_on_the_stand_in(monkeypatch, tmp_path, stage):
    """With a model of next to nothing; what is shown is that the code runs, not how fast."""
    if why := host.missing():
        pytest.skip(why)
    cuda, get, tiny = Cuda(FakeCupy(memory=1 << 31)), backends.get, SimpleNamespace(config=lambda: CONFIG)
    monkeypatch.setattr(backends, "get", lambda name: cuda if name == "cuda" else get(name))
    monkeypatch.setattr("tinyqwen.sizes.SIZES", dict.fromkeys(("0.5B", "7B"), tiny))
    monkeypatch.setattr(gpu_check, "MODELS", (("0.5B", "bf16"), ("0.5B", "int4")))
    monkeypatch.setattr(gpu_check.gpu_kernels, "cases", lambda config: islice(CASES(config, 9, 9), 6))
    monkeypatch.setattr(gpu_check.gpu_kernels, "attentions", lambda config: islice(ATTENTIONS(config, 9, 9), 3))
    measure, ceilings = gpu_check.gpu.measure, gpu_check.gpu.ceilings
    small = {"depths": (0,), "prompts": (40,), "tokens": 3}
    monkeypatch.setattr(gpu_check.gpu, "measure", lambda *all, **more: measure(*all, **{**more, **small}))
    monkeypatch.setattr(gpu_check.gpu, "ceilings", lambda backend: ceilings(backend, quick=True))
    monkeypatch.setattr(gpu_check, "TOKENS", 5)
    gpu_check.inside(stage, tmp_path / "found.json")
    found = gpu_check.kept(tmp_path / "found.json")[stage]
    assert not gpu_check.failed(found) and found.get("same", 5) == 5


def test_what_every_machine_has_is_found(tmp_path):
    gpu_check.inside("doctor", tmp_path / "found.json")
    assert "gpu" in json.loads((tmp_path / "found.json").read_text())["doctor"]
