"""Items: a question, and the rule that tells a right reply from a wrong one.

    {"task": "addition", "messages": [{"role": "user", "content": "What is 17 + 25?"}], "answer": "42"}

A rule is one of three:

    answer     the reply, without blanks around it, is that
    regex      is found in the reply
    keywords   all of them stand in the reply, as words, in whatever case
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinyqwen.chat_template import Message
from tinyqwen.conversation import is_message
from tinyqwen.errors import UsageError


class Item(NamedTuple):
    """A question of a task. Exactly one of `answer`, `regex` and `keywords` is given."""

    task: str
    messages: list[Message]
    answer: str = ""
    regex: str = ""
    keywords: tuple[str, ...] = ()


def correct(item: Item, said: str) -> bool:
    r"""Whether the reply is right.

    >>> ask = [{"role": "user", "content": "?"}]
    >>> correct(Item("sum", ask, answer="42"), "42\n"), correct(Item("sum", ask, answer="42"), "It is 42.")
    (True, False)
    >>> correct(Item("sum", ask, regex=r"\b42\b"), "It is 42."), correct(Item("sum", ask, regex=r"\b42\b"), "420")
    (True, False)
    >>> correct(Item("fact", ask, keywords=("rotary", "GQA")), "gqa, and Rotary embeddings")
    True
    """
    if item.answer:
        return said.strip() == item.answer
    if item.regex:
        return re.search(item.regex, said) is not None
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said, re.IGNORECASE) for word in item.keywords)


def parse_item(raw: dict) -> Item:
    """The item of an object of JSON. Errors: ValueError says what is wrong with it.

    >>> parse_item({"task": "sum", "messages": [{"role": "user", "content": "1 + 1"}]})
    Traceback (most recent call last):
    ValueError: needs one of answer, regex, keywords
    """
    rules = {name: raw[name] for name in ("answer", "regex", "keywords") if isinstance(raw, dict) and raw.get(name)}
    if not isinstance(raw, dict) or not isinstance(raw.get("task"), str):
        raise ValueError("needs a task, a text")
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise ValueError('needs messages, a list of {"role": ..., "content": ...}')
    if len(rules) != 1:
        raise ValueError("needs one of answer, regex, keywords")
    [(name, rule)] = rules.items()
    if name == "keywords":
        if not isinstance(rule, list) or not all(isinstance(word, str) for word in rule):
            raise ValueError("keywords must be a list of texts")
        return Item(raw["task"], messages, keywords=tuple(rule))
    if not isinstance(rule, str):
        raise ValueError(f"{name} must be a text")
    if name == "regex":
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"regex {rule!r}: {error}") from None
    return Item(raw["task"], messages, **{name: rule})


def as_json(item: Item) -> str:
    """A line of a file of items."""
    return json.dumps({name: value for name, value in item._asdict().items() if value}, ensure_ascii=False)


def read_items(path: Path | str) -> Iterator[Item]:
    """The items of a file, one a line. Errors: UsageError names file and line."""
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield parse_item(json.loads(line))
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from None
