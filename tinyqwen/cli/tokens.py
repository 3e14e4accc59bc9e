"""Show how a text is cut into tokens, or what ids mean.

Control tokens' names in a text are text, as everywhere in tinyqwen; --template treats the text as a template's output,
where they are control tokens.

  tinyqwen tokens --size 0.5B "Hello world 12345"
  tinyqwen tokens -m FOLDER --ids 9707 1879
"""

from __future__ import annotations

import argparse
import json
import sys

from tinyqwen.cli.options import add_model_arguments, model_folder, read_text
from tinyqwen.errors import UsageError
from tinyqwen.tokenizer import Tokenizer, harmless


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="the text (words are joined by spaces); - or @FILE reads it")
    parser.add_argument("--ids", action="store_true", help="the words are ids to decode")
    parser.add_argument("--template", action="store_true", help="names of control tokens become control tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.text and sys.stdin.isatty():
        raise UsageError('no text: write one, as in: tinyqwen tokens --size 0.5B "Hello world"')
    text = read_text(" ".join(arguments.text) or "-", "text")
    tokenizer = Tokenizer(model_folder(arguments, weights=False))
    if arguments.ids:
        ids = parse_ids(text)
    else:
        ids = tokenizer.encode_template(text) if arguments.template else tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(token, hide_control=False) for token in ids]
    if arguments.json:
        print(
            json.dumps({"ids": ids, "pieces": [piece.decode(errors="replace") for piece in pieces]}, ensure_ascii=False)
        )
        return 0
    show_table(tokenizer, ids, pieces)
    return 0


def parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"--ids needs whole numbers ({error})") from None


def show_table(tokenizer: Tokenizer, ids: list[int], pieces: list[bytes]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("token", "id", "text", "bytes", box=None, header_style="bold")
    for number, (token, piece) in enumerate(zip(ids, pieces)):
        kind = "control" if token in tokenizer.control.values() else "" if token < tokenizer.size else "no text"
        shown = harmless(piece.decode(errors="replace")).replace("\n", "␊").replace("\t", "␉").replace(" ", "·")
        table.add_row(
            str(number), str(token), Text(shown, style="bold" if kind else ""), piece.hex(" ") if piece else kind
        )
    console = Console()
    console.print(table)
    text_bytes = sum(map(len, pieces))
    console.print(f"{len(ids)} tokens, {text_bytes} bytes, {text_bytes / max(len(ids), 1):.2f} bytes a token")
