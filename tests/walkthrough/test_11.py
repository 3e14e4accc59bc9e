"""Lesson 11: it runs alone, its exercises fail unsolved, pass with the model answers, and fail with wrong ones."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LESSON = ROOT / "walkthrough" / "11_break_it.py"
CHECKS = re.findall(r"^# (assert .*)$", LESSON.read_text(encoding="utf-8"), re.MULTILINE)

RIGHT = """
from tinyqwen.blocks.attention import scores

layer = 1  # layer 0 has no window
longest = 4  # as long as the window: the fifth token is the first that must not see all before it

def wrong_scores(backend, q_GRTK, k_GSK, **settings):
    return scores.definition(backend, q_GRTK * q_GRTK.shape[-1] ** -0.5, k_GSK, **settings)
"""
WRONG = (
    "layer = 0",
    "longest = 5",
    "wrong_scores = lambda backend, q_GRTK, *rest, **more: scores.definition(backend, 2 * q_GRTK, *rest, **more)",
)


@pytest.fixture(scope="module")
def after():
    """The lesson's variables after it has run, with the exercises unsolved."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
        return runpy.run_path(str(LESSON))


def test_it_runs_without_installing_and_shows_the_places(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "walkthrough/11_break_it.py"],
        cwd=ROOT, env={"COLUMNS": "80", "PYTHONUTF8": "1"}, capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines()[:40])) <= 80
    marked = [line.split()[0] for line in done.stdout.splitlines() if "<- " in line]
    assert marked == ["layers.0.input_layernorm", "layers.0.self_attn.rope", "rope_tables[0]"]


def test_the_exercises(after):
    assert len(CHECKS) == len(WRONG) == 3
    for check in CHECKS:
        with pytest.raises((AssertionError, TypeError)):
            exec(check, after)
    exec(RIGHT, after)
    for check in CHECKS:
        exec(check, after)
    for wrong, check in zip(WRONG, CHECKS):
        exec(wrong, after)
        with pytest.raises(AssertionError):
            exec(check, after)
