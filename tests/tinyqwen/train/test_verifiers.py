"""What answers are worth: by exact text, by rules, and by programs that are run, whatever they try."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqwen.errors import UsageError
from tinyqwen.train import verifiers
from tinyqwen.train.verifiers import RULES, Verifier, program, rewards, verifier_of


def one(kind, what, text):
    return rewards([Verifier(kind, what)], [text])[0]


@given(st.text(max_size=20))
def test_exact_is_exact_but_for_blanks_around(text):
    assert one("exact", text, f"\n {text} ") == 1
    assert one("exact", text, text + "x") == 0


@pytest.mark.parametrize(
    "rule, value, kept, broken",
    [
        ("max_words", 3, "a b c", "a b c d"),
        ("min_words", 2, "a b", "a"),
        ("max_characters", 2, "ab", "abc"),
        ("contains", ["Yes", "sir"], "yes, SIR", "yes"),
        ("avoids", ["sorry", "no"], "fine", "Sorry!"),
        ("matches", r"^\d+$", "42", "42."),
        ("no_shouting", True, "Fine, OK.", "NEVER"),
        ("no_shouting", True, "Fine!", "Fine!!"),
    ],
)
def test_each_rule(rule, value, kept, broken):
    assert one("rules", {rule: value}, kept) == 1
    assert one("rules", {rule: value}, broken) == 0


def test_every_rule_is_tested():
    assert {"max_words", "min_words", "max_characters", "contains", "avoids", "matches", "no_shouting"} == set(RULES)


def test_of_several_rules_the_fraction_counts():
    rules = {"max_words": 2, "contains": ["a"], "avoids": ["b"], "matches": "z"}
    assert one("rules", rules, "a b") == 0.5


# ---- executed -----------------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="programs are run by fork")
DOUBLE = {"tests": "assert f(2) == 4 and f(0.5) == 1"}


@posix
@pytest.mark.parametrize(
    "answer, worth",
    [
        ("f = lambda x: 2 * x", 1),
        ("Sure:\n```python\ndef f(x):\n    return x + x\n```\nIt doubles.", 1),
        ("f = lambda x: x ** 2", 0),
        ("def f(x:", 0),
        ("", 0),
        ("import sys; sys.exit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("raise KeyboardInterrupt", 0),
        ("x = 'a' * 10**10", 0),
        ("def f(x): return f(x)", 0),
        ("import math, re, collections, json\nf = lambda x: math.fsum([x, x])", 1),
        ("print('noise', flush=True)\nf = lambda x: 2 * x", 1),
    ],
)
def test_a_program_earns_what_its_tests_say(answer, worth):
    assert one("python", DOUBLE, answer) == worth


@posix
@pytest.mark.parametrize("check, worth", [
    ("return len(answer) < 9", 1), ("return 0.25", 0.25), ("return 7", 1), ("return -1", 0),
    ("return float('nan')", 0), ("return 'much'", 0), ("return None", 0), ("1 / 0", 0),
])  # fmt: skip
def test_a_checking_function_says_what_an_answer_is_worth(check, worth):
    assert one("python", {"check": f"def check(answer): {check}"}, "short") == worth


@posix
def test_an_answer_without_end_is_ended_and_the_others_are_judged(monkeypatch):
    monkeypatch.setattr(verifiers, "SECONDS", 0.3)
    begin = time.monotonic()
    answers = ["while True: pass", "f = lambda x: 2 * x", "import time; time.sleep(60)", "f = lambda x: x + x"]
    assert rewards([Verifier("python", DOUBLE)] * 4, answers).tolist() == [0, 1, 0, 1]
    assert time.monotonic() - begin < 15


@posix
@pytest.mark.parametrize("deed", [
    "open('{path}', 'w').write('x')", "import os; os.remove('{path}')", "import os; os.open('{path}', os.O_TRUNC)",
    "import subprocess; subprocess.run(['true'])", "import os; os.system('true')", "import os; os.fork()",
    "import socket; socket.create_connection(('localhost', 9))", "import os; os.kill(os.getppid(), 9)",
    "import shutil; shutil.rmtree('{folder}')",
])  # fmt: skip
def test_accidents_are_refused(tmp_path, deed):
    path = tmp_path / "kept"
    path.write_text("all of it")
    answer = deed.format(path=path, folder=tmp_path) + "\nf = lambda x: 2 * x"
    assert one("python", DOUBLE, answer) == 0
    assert path.read_text() == "all of it"


def test_several_kinds_at_once_keep_their_places():
    kinds = [Verifier("exact", "a"), Verifier("rules", {"max_words": 1}), Verifier("exact", "b")]
    np.testing.assert_array_equal(rewards(kinds, ["a", "two words", "b"]), [1, 0, 1])


@given(st.text(max_size=30))
def test_a_program_without_a_fence_is_the_whole_text(text):
    assert program(text) == text or "```" in text


# ---- lines of data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, found",
    [
        ({"answer": "42"}, Verifier("exact", "42")),
        ({"answer": "42", "verifier": {"kind": "exact"}}, Verifier("exact", "42")),
        ({"verifier": {"kind": "exact", "answer": "43"}}, Verifier("exact", "43")),
        ({"verifier": {"kind": "python", "tests": "x"}}, Verifier("python", {"tests": "x"})),
        ({"verifier": {"kind": "rules", "rules": {"max_words": 3}}}, Verifier("rules", {"max_words": 3})),
    ],
)
def test_verifiers_of_lines(line, found):
    assert verifier_of("here", line) == found


@pytest.mark.parametrize(
    "line",
    [
        {}, {"answer": 42}, {"verifier": "exact"}, {"verifier": {"kind": "judge"}}, {"verifier": {"kind": "exact"}},
        {"verifier": {"kind": "python"}}, {"verifier": {"kind": "python", "tests": "x", "check": "y"}},
        {"verifier": {"kind": "python", "tests": 3}}, {"verifier": {"kind": "rules", "rules": {}}},
        {"verifier": {"kind": "rules", "rules": {"max_words": "3"}}},
        {"verifier": {"kind": "rules", "rules": {"x": 1}}},
        {"verifier": {"kind": "rules", "rules": {"matches": "("}}},
    ],
)  # fmt: skip
def test_what_no_verifier_can_be_made_of_is_refused(line):
    with pytest.raises(UsageError, match="line 7: "):
        verifier_of("line 7", line)
