"""README: every command in it runs, every file it names is there, the Python in it works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_tiny_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python -m tinyqwen")]
COMMANDS += re.findall(r"^(python -m tinyqwen \w+.*?)   ", README, re.MULTILINE)  # the three lines of the welcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-Instruct")
    write_tiny_checkpoint(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_runs(folder, command, tmp_path):
    """As written, but with a tiny model in place of a download."""
    command = re.sub(r"\bOUT\b", str(tmp_path / "out"), command)
    words = shlex.split(command)[1:]
    if "info" not in words:
        words = shlex.split(re.sub(r"--size \S+|--model FOLDER", f"--model {folder}", command))[1:]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, input=b"hi\n", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout


def test_the_readme_shows_what_the_program_says_without_arguments():
    done = subprocess.run([sys.executable, "-m", "tinyqwen"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert blocks("text")[0] == done.stdout


def test_the_python_in_the_readme_works(folder):
    code = blocks("python")[0].replace("folder/of/Qwen2-0.5B-Instruct", str(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_readmes_picture_is_what_its_command_draws(tmp_path):
    """The same words and numbers; how rich draws a window may differ between its releases."""
    [command] = re.findall(r"\(`COLUMNS=96 (python -m tinyqwen trace .*?)`\)", README)
    words = shlex.split(command.replace("walkthrough/trace.svg", str(tmp_path / "trace.svg")))[1:]
    environment = {**os.environ, "COLUMNS": "96"}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=60)
    drawn, committed = tmp_path / "trace.svg", ROOT / "walkthrough" / "trace.svg"
    assert text_of(drawn) == text_of(committed)


def text_of(svg):
    """The texts of a picture, in order."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.read_text(encoding="utf-8"))


def test_every_file_that_the_readme_links_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_nothing_unexpected_at_the_top_level():
    expected = {"pyproject.toml", "README.md", "LICENSE", "tinyqwen", "backends", "walkthrough", "tests"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= expected


def test_no_document_or_program_names_a_place_on_somebodys_machine():
    files = [
        path for folder in ("tinyqwen", "backends", "tests", "walkthrough") for path in (ROOT / folder).rglob("*.py")
    ]
    home = os.path.expanduser("~") + os.sep
    assert [path.name for path in files if home in path.read_text("utf-8")] == []
