"""Items of one's own: questions in a file, one a line, each with the rule that tells a right reply from a wrong one.

    {"task": "sums", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "answer": "42"}
    {"task": "sums", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "expect": "\\b42\\b"}

`answer`: the reply, without blanks around it, is that. `expect`: this regular expression is found in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tinyqwen.conversation import is_message
from tinyqwen.errors import UsageError
from tinyqwen.files import read_text
from tinyqwen.tiny.generators import Item


def read_items(path: Path | str) -> Iterator[Item]:
    """The items of a file. Errors: UsageError names file and line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: U+2028 may stand in JSON
        if line.strip():
            try:
                yield parse_item(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: {error}") from None


def parse_item(raw) -> Item:
    """The item of a line. Errors: ValueError says what is wrong with it.

    >>> item = parse_item({"task": "sums", "messages": [{"role": "user", "content": "1 + 1?"}], "expect": "2$"})
    >>> item.task, item.accepts("It is 2"), item.accepts("3")
    ('sums', True, False)
    """
    known = {"task", "messages", "answer", "expect"}
    if not isinstance(raw, dict) or not raw.keys() <= known or not isinstance(raw.get("task"), str):
        raise ValueError(f"must be an object of {', '.join(sorted(known))}; task is a text")
    messages, answer, expect = raw.get("messages"), raw.get("answer", ""), raw.get("expect", "")
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise ValueError('needs messages, a list of {"role": ..., "content": ...}')
    if not isinstance(answer, str) or not isinstance(expect, str) or not (answer or expect):
        raise ValueError("needs answer or expect, a text")
    try:
        re.compile(expect)
    except re.error as error:
        raise ValueError(f"expect {expect!r} is no regular expression: {error}") from None
    return Item(raw["task"], messages, answer, key="", expect=expect)
