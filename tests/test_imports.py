"""The direction of imports: the model can be read, and used, without the program around it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPINE = ["blocks", "model.py", "step.py", "kv_cache.py", "weights.py", "config.py", "sizes.py", "errors.py"]


def modules(*places):
    """Python files there, below folders too."""
    for place in places:
        found = [place] if place.is_file() else sorted(place.rglob("*.py"))
        assert found, f"{place} holds no Python"
        yield from found


def imports(path):
    """The dotted names that a file imports, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(files, *names):
    return {
        path.relative_to(ROOT).as_posix() for path in files for name in imports(path) if f"{name}.".startswith(names)
    }


def test_backends_know_nothing_of_language_models():
    assert not importers(modules(ROOT / "backends"), "tinyqwen.")


def test_the_model_knows_nothing_of_the_program_around_it():
    spine = modules(*(ROOT / "tinyqwen" / name for name in SPINE))
    around = "rich.", "tinyqwen.cli.", "tinyqwen.trace.", "huggingface_hub.", "torch.", "transformers."
    assert not importers(spine, *around)


def test_only_what_a_person_sees_imports_rich():
    allowed = ("tinyqwen/cli/", "tinyqwen/trace/")
    users = importers(modules(ROOT / "tinyqwen", ROOT / "backends"), "rich.")
    assert not {user for user in users if not user.startswith(allowed)}


@pytest.mark.parametrize("line", ["import rich", "from rich.table import Table", "def f():\n    import rich.text as t"])
def test_every_way_of_importing_is_seen(line, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(line)
    assert any(f"{name}.".startswith("rich.") for name in imports(file))
