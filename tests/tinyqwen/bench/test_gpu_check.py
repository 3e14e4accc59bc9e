"""The script for whoever has a GPU: stages go on where they stopped, and one that fails does not end the others."""

from __future__ import annotations

import json

import pytest

import backends
from tinyqwen.bench import gpu_check


@pytest.fixture
def ran(monkeypatch):
    """A machine with a GPU, on which stages are only noted; `peers` fails."""
    stages = []

    def run(stage):
        stages.append(stage)
        return {"seconds": 1.0, **({"failed": "no such module"} if stage == "peers" else {})}

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
    def slow():
        yield {"rows": [1]}
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu_check.STAGES, "decode", slow)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.inside("decode", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == {"rows": [1]}


def test_a_stage_that_cannot_run_says_why():
    """Here there is no GPU: the process of a stage fails, and its words are kept."""
    if backends.choose()[0] == "cuda":
        pytest.skip("there is a GPU")
    found = gpu_check.run("graphs")
    assert gpu_check.failed(found) and "no NVIDIA driver" in found["failed"]


def test_what_every_machine_has_is_found(tmp_path):
    gpu_check.inside("doctor", tmp_path / "found.json")
    assert "gpu" in json.loads((tmp_path / "found.json").read_text())
