"""Pictures for the terminal: bars, a heat map, a table. They need no colour, so they print anywhere."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, markup=False)


def bars(values: dict[str, float], *, form: str = ".3f", width: int = 40) -> None:
    """One bar per name, the longest as wide as `width`.

    >>> bars({"cat": 0.5, "mat": 0.25}, form=".2f", width=4)
    cat  0.50 ████
    mat  0.25 ██
    """
    largest = max(values.values()) or 1
    names, numbers = max(map(len, values)), max(len(format(value, form)) for value in values.values())
    for name, value in values.items():
        eighths = round(8 * width * value / largest)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
        console.print(f"{name:{names}}  {value:{numbers}{form}} {bar}".rstrip())


def heat(matrix, rows: list[str], columns: list[str]) -> None:
    """A matrix of numbers from 0 up as shades, three characters a cell: the darker, the nearer to the largest.

    >>> heat([[1, 0], [0.5, 0.5]], ["a", "b"], ["a", "b"])
       a  b
    a  ███
    b  ▒▒▒▒▒▒
    """
    largest, width = max(max(row) for row in matrix), max(map(len, rows))
    console.print(f"{'':{width}}  {''.join(f'{name:3.2}' for name in columns)}".rstrip())
    for name, row in zip(rows, matrix):
        cells = "".join(3 * " ░▒▓█"[round(4 * float(value / largest))] for value in row)
        console.print(f"{name:{width}}  {cells}".rstrip())


def table(heads: str, *rows: tuple) -> None:
    """A table; the names of its columns are separated by two blanks. All but names in the first stand to the right.

    >>> table("letter  size", ("T", 1), ("D", 24))
     letter   size
    ───────────────
     T           1
     D          24
    """
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=True)
    for n, head in enumerate(heads.split("  ")):
        grid.add_column(head, justify="left" if n == 0 and isinstance(rows[0][0], str) else "right")
    for row in rows:
        grid.add_row(*map(str, row))
    console.print(grid)
