"""Jupyter notebooks of the lessons, for those who like to read in a browser.

    python -m walkthrough.notebooks DIR

The lessons stay plain Python; a notebook is made, never edited. Put DIR inside the repository (its root or a folder
there), so that the first cell finds the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MARK = "# %%"


def cells(lesson: str) -> list[tuple[str, str]]:
    """A lesson's cells: what kind each is, markdown or code, and its text.

    >>> cells("# %% [markdown]\\n# # Title\\n#\\n# Text.\\n\\n# %% Sum\\n1 + 1\\n")
    [('markdown', '# Title\\n\\nText.'), ('code', '# Sum\\n1 + 1')]
    """
    found = []
    for cell in f"\n{lesson}".split(f"\n{MARK}")[1:]:
        title, _, body = cell.partition("\n")
        if title.strip() == "[markdown]":
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            found.append(("markdown", text))
        else:
            found.append(("code", (f"# {title.strip()}\n" if title.strip() else "") + body.strip("\n")))
    return found


def notebook(lesson: str) -> dict:
    """The lesson as the JSON object of nbformat 4.5."""
    made = []
    for number, (kind, text) in enumerate(cells(lesson)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(__file__).parent.glob("[0-9][0-9]_*.py")):
        made = folder / f"{path.stem}.ipynb"
        made.write_text(json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1), encoding="utf-8")
        print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
