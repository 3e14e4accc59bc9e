"""Rules for values read from JSON. A rule takes a value and returns a complaint, or None; rules are made from rules.

>>> sizes = null_or(list_of(whole(1, 9)))
>>> sizes(None), sizes([3, 7]), sizes([3, True])
(None, None, 'must be a list whose items are a whole number from 1 to 9')
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], str | None]


def whole(low: int, high: int) -> Rule:
    """An integer of that range."""
    return number(low, high, (int,), "a whole number")


def real(low: float, high: float) -> Rule:
    """A finite number of that range."""
    return number(low, high, (int, float), "a number")


def number(low: float, high: float, kinds: tuple[type, ...], what: str) -> Rule:
    """Not true or false, which Python would take for 1 and 0; and NaN is in no range."""

    def rule(value):
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            return f"must be {what} from {low:.10g} to {high:.10g}"

    return rule


def boolean(value):
    return None if isinstance(value, bool) else "must be true or false"


def text(value):
    return None if isinstance(value, str) else "must be a text"


def only(*values) -> Rule:
    complaint = f"must be {' or '.join(map(json.dumps, values))}: nothing else is supported"
    return lambda value: None if value in values else complaint


def list_of(rule: Rule) -> Rule:
    complaint = f"must be a list whose items {str(rule(None)).replace('must be', 'are')}"
    return lambda value: None if isinstance(value, list) and not any(map(rule, value)) else complaint


def object_of(rules: dict[str, Rule], *required: str) -> Rule:
    """An object with these keys, each with its rule."""

    def rule(value):
        if not isinstance(value, dict):
            return f"must be an object with {' and '.join(required)}"
        if unknown := sorted(value.keys() - rules.keys()):
            return f"has {', '.join(unknown)}, whose effect tinyqwen does not know"
        given = {**dict.fromkeys(required), **value}
        return " and ".join(f"its {key} {said}" for key in given if (said := rules[key](given[key]))) or None

    return rule


def null_or(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def either(first: Rule, second: Rule) -> Rule:
    return lambda value: first(value) and second(value) and f"{first(value)}, or {second(value)}"


def every(*rules: Rule) -> Rule:
    """All of them, in order: a rule may rely on those before it."""
    return lambda value: next((said for rule in rules if (said := rule(value))), None)
