"""The course runs, says what it said, can be solved and can be failed; and it becomes notebooks."""

import ast
import contextlib
import doctest
import io
import json
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from tests.walkthrough.answers import ANSWERS
from tests.walkthrough.lessons import GOLDENS, LESSONS, ROOT, fixed, run_lesson
from walkthrough import notebooks, pictures

WITH_GOLDEN = [name for name in LESSONS if (GOLDENS / f"{name}.txt").exists()]
every_lesson = pytest.mark.parametrize("name", LESSONS)


def code_of(name):
    return LESSONS[name].read_text(encoding="utf-8")


def commented_asserts(name):
    """The asserts of the exercises, without the `# ` in front of them."""
    return re.findall(r"^# (assert .*)$", code_of(name), re.MULTILINE)


# ---- what a reader sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_a_lesson_runs_offline_without_warnings_and_prints_what_it_printed(name, tmp_path):
    done = run_lesson(name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert fixed(done.stdout) == (GOLDENS / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"0x[0-9a-f]{6}|\x1b|\d\.\d{5}", done.stdout), "addresses, colours, or too many digits"


def test_the_course_is_complete():
    assert [name[:2] for name in LESSONS][:10] == [f"{n:02}" for n in range(1, 11)]
    assert {name for name in LESSONS if name < "11"} <= set(ANSWERS) & set(WITH_GOLDEN)


def test_the_picture_of_all_distances_is_the_lessons():
    """To draw it anew: write the lesson's `picture` there."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
        lesson = runpy.run_path(str(LESSONS["15_dual_chunk"]))
    assert (ROOT / "walkthrough" / "dual_chunk.svg").read_text(encoding="utf-8") == lesson["picture"]
    xml.etree.ElementTree.fromstring(lesson["picture"])


def test_the_network_is_really_forbidden(tmp_path):
    lesson = tmp_path / "00_calls_home.py"
    lesson.write_text("import socket; socket.create_connection(('localhost', 9))")
    done = run_lesson(os.path.relpath(lesson.with_suffix(""), ROOT / "walkthrough"), tmp_path)
    assert "works offline" in done.stderr


# ---- how a lesson is made -----------------------------------------------------------------------------------------


@every_lesson
def test_the_shape_of_a_lesson(name):
    lines = code_of(name).splitlines()
    kinds = [kind for kind, _ in notebooks.cells(code_of(name))]
    longer = "12_four_speeds", "23_what_the_curve_says"  # four kernels in full; a language, two runs and what to ask
    assert 60 <= len(lines) <= (210 if name in longer else 150)
    assert lines[0] == "# %% [markdown]"
    assert lines[1].startswith(f"# # {int(name[:2])}. "), "a title with the lesson's number"
    assert lines[2].startswith("# Goal: "), "the goal, in one line, under the title"
    assert kinds.count("markdown") >= 3 and kinds.count("code") >= 5
    assert 'sys.path.insert(0, ".")' in code_of(name)


@every_lesson
def test_a_lesson_ends_with_three_exercises(name):
    last = [text for kind, text in notebooks.cells(code_of(name)) if kind == "code"][-3:]
    for number, text in enumerate(last, 1):
        assert text.startswith(f"# Exercise {number}. ")
        assert len(re.findall(r"^# assert ", text, re.MULTILINE)) == 1
    before = code_of(name).split("# Exercise 1.")[0]
    assert re.search(r"^assert ", before, re.MULTILINE), "asserts say what was learnt"


@every_lesson
def test_files_that_a_lesson_names_are_there(name):
    named = re.findall(r"\b(?:tinyqwen|backends|walkthrough|tests)/[\w/]+\.py\b", code_of(name))
    assert named and [path for path in named if not (ROOT / path).exists()] == []


# ---- exercises ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def after(request):
    """A lesson's variables after it has run to its end, with the exercises unsolved; made once for each lesson."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
        return runpy.run_path(str(LESSONS[request.param]))


@pytest.mark.parametrize("after, name", [(name, name) for name in ANSWERS], indirect=["after"], ids=list(ANSWERS))
def test_exercises_fail_unsolved_and_pass_with_the_model_answers(after, name):
    checks = commented_asserts(name)
    assert len(checks) == 3
    for check in checks:
        with pytest.raises((AssertionError, TypeError)):  # what comes of `...` in comparisons and arithmetic
            exec(check, after)
    exec(ANSWERS[name].right, after)
    for check in checks:
        exec(check, after)
    assert len(ANSWERS[name].wrong) == 3
    for wrong, check in zip(ANSWERS[name].wrong, checks):
        exec(wrong, after)
        with pytest.raises(AssertionError):
            exec(check, after)


# ---- notebooks ----------------------------------------------------------------------------------------------------


def test_every_lesson_becomes_a_notebook_with_the_same_code(tmp_path):
    command = [sys.executable, "-m", "walkthrough.notebooks", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == len(LESSONS)
    for name in LESSONS:
        made = json.loads((tmp_path / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert made["nbformat"] == 4 and made["nbformat_minor"] >= 5
        assert made["metadata"]["kernelspec"]["name"] == "python3"
        for cell in made["cells"]:
            code_only = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
            assert set(cell) == {"cell_type", "id", "metadata", "source"} | code_only
        assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
        joined = "\n".join("".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code")
        assert ast.dump(ast.parse(joined)) == ast.dump(ast.parse(code_of(name)))
        for line in code_of(name).splitlines():
            if not line.startswith(("#", "# %%")):
                assert line in joined
        prose = "\n".join("".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "markdown")
        assert prose.startswith("# ") and "\nGoal: " in prose


def test_a_notebook_runs_in_a_folder_of_the_repository(tmp_path):
    code = "\n".join(text for kind, text in notebooks.cells(code_of("03_rms_norm")) if kind == "code")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_notebooks_without_a_folder_explains_itself():
    done = subprocess.run([sys.executable, "-m", "walkthrough.notebooks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "DIR" in done.stdout


@pytest.mark.parametrize("module", [notebooks, pictures], ids=["notebooks", "pictures"])
def test_examples_in_docstrings(module, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed
