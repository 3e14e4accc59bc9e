"""doctor: what it finds, and the line that mends what is missing."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import nvidia
from tinyqwen.cli import doctor


def test_every_machine_can_be_examined(tinyqwen):
    code, out, err = tinyqwen("doctor")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("processor", "threads", "cache folder", "driver", "--backend auto"))


def test_json_says_the_same(tinyqwen):
    found = json.loads(tinyqwen("doctor", "--json")[1])
    assert set(found) == {"program", "processor", "memory", "gpu", "verdict"}
    assert found["processor"]["threads"] >= 1 and found["verdict"]["--backend auto"] in ("cpu", "cuda")


@pytest.mark.parametrize(("driver", "line"), [((12, 8), "tinyqwen[cuda12]"), ((13, 0), "tinyqwen[cuda13]")])
def test_what_is_missing_comes_with_the_pip_line_for_this_driver(tinyqwen, monkeypatch, driver, line):
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(nvidia, "driver_version", lambda: driver)
    monkeypatch.setattr(nvidia, "wheels", dict)
    found = json.loads(tinyqwen("doctor", "--json")[1])
    assert found["verdict"]["--backend auto"] == "cpu" and line in found["verdict"]["because"]
    assert found["gpu"]["missing"] == found["verdict"]["because"]


@pytest.mark.parametrize("driver", [None, (12, 8), (13, 0)])
def test_two_cupys_are_one_too_many_with_or_without_a_driver(tinyqwen, monkeypatch, driver):
    monkeypatch.setattr(nvidia, "driver_version", lambda: driver)
    monkeypatch.setattr(nvidia, "wheels", lambda: {"cupy-cuda13x": "14.2.0", "cupy-cuda12x": "14.2.0"})
    gpu = json.loads(tinyqwen("doctor", "--json")[1])["gpu"]
    assert "spoil each other; pip uninstall -y cupy-cuda12x cupy-cuda13x; then pip install" in gpu["missing"]


def test_no_extra_brings_a_second_cupy():
    """cuda12 and cuda13 bring one each; whatever they are installed with must bring none."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {name for name, needed in extras.items() if "cupy" in " ".join(needed)} == {"cuda12", "cuda13"}


def test_a_device_is_described(tinyqwen, monkeypatch):
    properties = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "multiProcessorCount": 132}
    runtime = SimpleNamespace(
        getDeviceProperties=lambda n: properties, memGetInfo=lambda: (140 * 10**9, 150 * 10**9),
        runtimeGetVersion=lambda: 12090,
    )  # fmt: skip
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(nvidia, "open_cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    found = json.loads(tinyqwen("doctor", "--json")[1])
    assert found["gpu"]["device"] == "NVIDIA H200" and found["gpu"]["compute capability"] == "9.0"
    assert found["gpu"]["memory"] == "140.0 GB of 150.0 GB free" and found["verdict"]["--backend auto"] == "cuda"


def test_caches_are_read_where_linux_shows_them(tmp_path):
    for name, facts in {"index0": ("1", "Data", "48K"), "index1": ("1", "Instruction", "32K")}.items():
        (tmp_path / name).mkdir()
        for file, text in zip(("level", "type", "size"), facts):
            (tmp_path / name / file).write_text(text + "\n")
    assert doctor.caches(tmp_path) == {"L1": "48K"} and doctor.caches(tmp_path / "none") == {}
