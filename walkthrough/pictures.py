"""Pictures for the terminal: bars, a heat map, a table. They need no colour, so they print anywhere."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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


COLOURS = ("#7fb2e5", "#f2c14e", "#e88873")  # light enough for black figures


def coloured(matrix, kinds) -> None:
    """A lower triangle of whole numbers, each on its kind's colour; where there are no colours, a mark tells it, too.

    matrix, kinds   numbers, and for each which of the colours it has (marks: none, ' and ")

    >>> coloured([[0, 0], [3, 0]], [[0, 0], [1, 0]])
     0
     3' 0
    """
    for row, numbers in enumerate(matrix):
        line = Text()
        for number, kind in zip(numbers[: row + 1], kinds[row]):
            line.append(f"{number:2}" + " '\""[kind], style=f"black on {COLOURS[kind]}")
        console.print(line)


def coloured_svg(matrix, kinds, legend) -> str:
    """The same as an SVG picture, with the names of the kinds below it."""
    side, rows = 22, len(matrix)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {rows * side} {(rows + 2) * side}" '
        'font-family="sans-serif" font-size="11" text-anchor="middle">'
    ]

    def cell(x, y, width, colour, text):
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{side}" fill="{colour}" stroke="white"/>')
        parts.append(f'<text x="{x + width / 2:g}" y="{y + 15}">{text}</text>')

    for i, numbers in enumerate(matrix):
        for j, number in enumerate(numbers[: i + 1]):
            cell(j * side, i * side, side, COLOURS[kinds[i][j]], number)
    width = rows * side / len(legend)
    for n, name in enumerate(legend):
        cell(n * width, (rows + 1) * side, width, COLOURS[n], name)
    return "\n".join([*parts, "</svg>\n"])
