"""Curves: means over all steps, none lost; charts and pictures of any log; logs that are none are refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqwen.cli.main import main
from tinyqwen.errors import UsageError
from tinyqwen.train.curve import Curve, chart, means, read_curve, svg, ticks

losses = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300)


def curve_of(values, name="run"):
    return Curve(name, np.arange(1, len(values) + 1), np.array(values))


@given(losses, st.integers(1, 50))
def test_every_step_counts_once(values, places):
    curve, last = curve_of(values), len(values)
    found = means(curve, places)
    counts = np.bincount((np.arange(last) * places) // last, minlength=places)
    assert np.nansum(found * counts) == pytest.approx(sum(values), rel=1e-9)
    assert (np.isfinite(found) == (counts > 0)).all()


@given(losses, st.integers(10, 80), st.integers(1, 12), st.integers(0, 300))
def test_a_chart_has_its_size_and_a_dot_for_each_column_with_steps(values, width, height, to_come):
    curve, last = curve_of(values), len(values) + to_come
    lines = chart(curve, width=width, height=height, last=last).splitlines()
    assert len(lines) == height + 1
    rows = [line[-width:] for line in lines[:-1]]
    assert all(0x2800 <= ord(cell) < 0x2900 for row in rows for cell in row)
    dots = np.array([[ord(cell) > 0x2800 for cell in row] for row in rows]).any(axis=0)
    has_steps = np.isfinite(means(curve, 2 * width, last)).reshape(width, 2).any(axis=1)
    assert (dots == has_steps).all()


def test_what_falls_falls_on_the_chart():
    rows = chart(curve_of(np.linspace(5, 1, 400)), width=40, height=8).splitlines()[:-1]
    first_dots = [next(n for n, cell in enumerate(row[-40:]) if cell != "\u2800") for row in rows]
    assert first_dots == sorted(first_dots) and first_dots[0] == 0 and first_dots[-1] > 30
    assert [rows[0].split()[0], rows[-1].split()[0]] == ["4.98", "1.02"]


@given(st.lists(losses, min_size=1, max_size=3))
def test_a_picture_is_sound_and_everything_lies_within(runs):
    picture = xml.etree.ElementTree.fromstring(svg([curve_of(values, f"<{n}>") for n, values in enumerate(runs)]))
    paths = [one.get("d") for one in picture.iter() if one.tag.endswith("path")]
    assert len(paths) == 2 * len(runs)
    points = np.array([point.split(",") for one in paths for point in one[1:].split()], float)
    assert (points >= 0).all() and (points <= [720, 400]).all()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within(low, wide):
    found = ticks(low, low + wide)
    assert 1 <= len(found) <= 7 and found == sorted(found)
    assert all(low - 1e-3 * wide <= tick <= low + 1.001 * wide for tick in found)


# ---- logs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": n, "loss": 5 / n, "lr": 0.1, **({"margin": 1.0} if n > 3 else {})} for n in range(1, 9)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return folder


def test_a_log_is_read_up_to_a_line_that_was_cut_off(out):
    name, step_N, loss_N = read_curve(out)
    assert name == "run" and step_N.tolist() == list(range(1, 9)) and loss_N[1] == 2.5
    assert read_curve(out / "log.jsonl", "margin").step_N.tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "text, figure, complaint",
    [
        (None, "loss", "cannot be read as the log"),
        ("not JSON\n", "loss", "cannot be read as the log"),
        ("[1]\n", "loss", "cannot be read as the log"),
        ("", "loss", "has no steps yet"),
        ('{"step": 1, "loss": 2, "lr": 3}\n', "reward", "has no reward; there are loss, lr"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, figure, complaint):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_curve(tmp_path, figure)


def test_the_command(out, tmp_path, capsys):
    assert main(["train", "curve", str(out), str(out), "--svg", str(tmp_path / "c.svg"), "--width", "20"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("run: loss 0.625 after step 8") == 2
    assert xml.etree.ElementTree.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")
    assert main(["train", "curve", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
