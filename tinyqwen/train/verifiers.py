"""Verifiers: what an answer is worth, found out by a rule instead of a person.

    {"prompt": "17 + 25 = ?", "answer": "42"}                                     said exactly: 1, else 0
    {"prompt": ..., "verifier": {"kind": "exact", "answer": "42"}}                the same
    {"prompt": ..., "verifier": {"kind": "python", "tests": "assert f(2) == 4"}}  the answer is a program; tests follow
    {"prompt": ..., "verifier": {"kind": "python", "check": "def check(answer): return len(answer) < 9"}}
    {"prompt": ..., "verifier": {"kind": "rules", "rules": {"max_words": 9, "avoids": ["sorry"]}}}

Qwen2's data were made so: execution feedback runs what the model wrote, or a checking function against it; rules are a
constitution of which an answer keeps a part. Python runs in limited processes (`answer_sandbox.py`).

Source: Qwen2 technical report, section 4.1.2.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyqwen.errors import TinyqwenError, UsageError

SECONDS = 2.0  # for one answer's program


class Verifier(NamedTuple):
    """kind: exact, python or rules. what: the answer; {"tests": ...} or {"check": ...}; the rules."""

    kind: str
    what: Any


# Each rule: a test of an answer's text and the value that the data give, and that value's type.
RULES: dict[str, tuple[Callable[[str, Any], bool], type]] = {
    "max_words": (lambda text, most: len(text.split()) <= most, int),
    "min_words": (lambda text, least: len(text.split()) >= least, int),
    "max_characters": (lambda text, most: len(text) <= most, int),
    "contains": (lambda text, words: all(word.lower() in text.lower() for word in words), list),
    "avoids": (lambda text, words: not any(word.lower() in text.lower() for word in words), list),
    "matches": (lambda text, pattern: re.search(pattern, text) is not None, str),
    "no_shouting": (lambda text, wanted: not (wanted and re.search(r"!!|\b[A-Z]{4,}\b", text)), bool),
}


def verifier_of(where: str, line: dict[str, Any]) -> Verifier:
    """The verifier of a line of data.

    >>> verifier_of("here", {"prompt": "17 + 25 = ?", "answer": "42"})
    Verifier(kind='exact', what='42')

    Errors: UsageError says what is wrong with it.
    """
    given = line.get("verifier", {"kind": "exact"})
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind == "exact" and isinstance(answer := given.get("answer", line.get("answer")), str):
        return Verifier("exact", answer)
    if kind == "python":
        code = {key: given[key] for key in ("tests", "check") if isinstance(given.get(key), str)}
        if len(code) == 1:
            return Verifier("python", code)
    if kind == "rules" and isinstance(rules := given.get("rules"), dict) and rules:
        for name, value in rules.items():
            if name not in RULES or not isinstance(value, RULES[name][1]):
                raise UsageError(f"{where}: no such rule, or not with this value: {name} {value!r}; {', '.join(RULES)}")
        with contextlib.suppress(re.error):
            re.compile(rules.get("matches", ""))
            return Verifier("rules", rules)
        raise UsageError(f"{where}: not a regular expression: {rules['matches']!r}")
    raise UsageError(
        f'{where}: needs an "answer", or a "verifier" of kind exact (answer), python (tests or check) or rules (rules)'
    )


def rewards(verifiers: Sequence[Verifier], texts: Sequence[str]) -> np.ndarray:
    """What each text is worth, from 0 to 1, by its verifier.

    >>> rules = Verifier("rules", {"max_words": 2, "avoids": ["sorry"]})
    >>> rewards([Verifier("exact", "42"), Verifier("exact", "42"), rules], [" 42", "43", "No, I am sorry"])
    array([1., 0., 0.])
    >>> rewards([rules], ["I said no"])
    array([0.5])
    """
    programs = [(verifier.what, text) for verifier, text in zip(verifiers, texts) if verifier.kind == "python"]
    executed = iter(executed_rewards(programs))
    judges = {
        "exact": lambda what, text: float(text.strip() == what.strip()),
        "rules": lambda rules, text: float(np.mean([RULES[name][0](text, value) for name, value in rules.items()])),
        "python": lambda what, text: next(executed),
    }
    return np.array([judges[verifier.kind](verifier.what, text) for verifier, text in zip(verifiers, texts)])


def executed_rewards(programs: Sequence[tuple[dict[str, str], str]]) -> list[float]:
    """Of {"tests": ...} or {"check": ...} and an answer each: 1 for tests that pass, what `check` says, or 0.

    >>> square = {"tests": "assert f(3) == 9"}
    >>> executed_rewards([(square, "def f(x): return x * x"), (square, "def f(x): return 2 * x")])
    [1.0, 0.0]
    """
    if not programs:
        return []
    jobs = [
        {"answer": text, "program": program(text), "seconds": SECONDS, **what} for what, text in programs
    ]  # fmt: skip
    script = Path(__file__).with_name("answer_sandbox.py")
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(script)], input=json.dumps(jobs), capture_output=True, text=True,
            timeout=30 + len(jobs) * (SECONDS + 1),
        )  # fmt: skip
        return json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise TinyqwenError("the processes that execute answers failed: too little memory, or too many") from None


def program(text: str) -> str:
    """The program in an answer: what stands in its first fence, or all of it.

    >>> program("Here:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    fence = re.search(r"```(?:python)?[ \t]*\n(.*?)```", text, re.DOTALL)
    return fence[1] if fence else text
