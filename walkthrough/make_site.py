"""Build the documentation as a web site:  python -m walkthrough.make_site DIR

Its pages are the README, every lesson with what it prints, and the docstrings of every module. Sphinx does the work
(pip install '.[docs]'); its sources are made in a temporary folder, and nothing that is generated is committed.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from backends.interface import Operation
from walkthrough.notebooks import cells

ROOT = Path(__file__).parent.parent
CONF = """
project = "tinyqwen"
extensions = ["myst_parser"]
html_theme = "furo"
html_show_copyright = False
suppress_warnings = ["myst.header", "myst.xref_missing"]
"""


def lessons() -> list[Path]:
    return sorted((ROOT / "walkthrough").glob("[0-9][0-9]_*.py"))


def lesson_page(path: Path) -> str:
    """A lesson as Markdown: its prose, its code, and what it prints when it is run.

    >>> "```python" in lesson_page(lessons()[0])
    True
    """
    parts = [
        text if kind == "markdown" else f"```python\n{text}\n```"
        for kind, text in cells(path.read_text(encoding="utf-8"))
    ]
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    return "\n\n".join([*parts, "## What it prints", f"```text\n{done.stdout}\n```"]) + "\n"


def module_names() -> list[str]:
    """Every module of both packages."""
    names = []
    for package in ("tinyqwen", "backends"):
        module = importlib.import_module(package)
        names += [package, *(found.name for found in pkgutil.walk_packages(module.__path__, f"{package}."))]
    return [name for name in names if not name.endswith("__main__")]


def module_page(name: str) -> str:
    """A module's docstring and those of its public functions, classes and operations, as they stand in the source.

    Of a module for which an extra must be installed, and is not: its docstring alone.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
        return f"# {name}\n\n{fenced(ast.get_docstring(ast.parse(source)))}\n"
    parts = [f"# {name}", fenced(module.__doc__)]
    for public, thing in vars(module).items():
        plain = thing.definition if isinstance(thing, Operation) else thing
        if (
            public.startswith("_")
            or not callable(plain)
            or getattr(plain, "__module__", "") != name
            or not plain.__doc__
        ):
            continue
        decorator = "@operation\n" if isinstance(thing, Operation) else ""
        parts += [f"## {public}", f"```python\n{decorator}{heading(plain)}\n```", fenced(thing.__doc__)]
    return "\n\n".join(parts) + "\n"


def heading(thing) -> str:
    """The first line of a function or class, as the source has it.

    >>> heading(fenced)
    'def fenced(text: str | None)'
    """
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(node, ast.FunctionDef):
        return f"def {node.name}({ast.unparse(node.args)})"
    return f"class {thing.__name__}"


def fenced(text: str | None) -> str:
    return f"````text\n{inspect.cleandoc(text)}\n````" if text else ""


def readme_page() -> str:
    """The README, its links to source files turned into links to their pages."""

    def page(match: re.Match) -> str:
        name = match.group(1).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return f"](api/{name}.md)"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\(((?:tinyqwen|backends)/[\w/]+\.py)\)", page, text)


def table_of_contents(title: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])


def write_sources(folder: Path) -> None:
    """Everything that Sphinx needs."""
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    contents = {"Lessons": [], "Modules": []}
    for place, names, page in (
        ("lessons", {path.stem: path for path in lessons()}, lesson_page),
        ("api", {name: name for name in module_names()}, module_page),
    ):
        (folder / place).mkdir()
        for name, source in names.items():
            (folder / place / f"{name}.md").write_text(page(source), encoding="utf-8")
            contents["Lessons" if place == "lessons" else "Modules"].append(f"{place}/{name}")
    (folder / "walkthrough").mkdir()
    for picture in ("trace.svg", "dual_chunk.svg"):
        shutil.copy(ROOT / "walkthrough" / picture, folder / "walkthrough")
    index = [readme_page(), *(table_of_contents(title, pages) for title, pages in contents.items())]
    (folder / "index.md").write_text("\n\n".join(index), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the site")
    arguments = parser.parse_args()
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("make_site: needs Sphinx: pip install '.[docs]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as sources:
        write_sources(Path(sources))
        code = build_main(["-q", "-W", "--keep-going", "-b", "html", sources, str(arguments.folder)])
    if code == 0:
        print(f"open {arguments.folder / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
