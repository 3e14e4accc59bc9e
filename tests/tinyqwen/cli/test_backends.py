"""--backend and --threads, and what a first start says."""

import json
import sys

import pytest

from backends.cpu.threads import most_threads
from tinyqwen.cli import options

GREEDY = "--raw", "--greedy", "-n", 5, "--json", "hi"


def test_every_backend_says_the_same_and_names_itself(tinyqwen, folder):
    said = {}
    for flags, name in [((), "cpu"), (("--backend", "numba"), "cpu"), (("--backend", "numpy"), "numpy")]:
        code, out, _ = tinyqwen("generate", "-m", folder, *flags, *GREEDY)
        answer = json.loads(out)
        assert (code, answer["backend"]) == (0, name)
        said[flags] = answer["text"]
    assert len(set(said.values())) == 1


@pytest.mark.parametrize("count", [0, -3, 4096])
def test_impossible_numbers_of_threads_are_refused_with_the_possible_ones(tinyqwen, folder, count):
    code, out, err = tinyqwen("generate", "-m", folder, "--threads", count, *GREEDY)
    assert (code, out) == (2, "") and f"from 1 to {most_threads()}" in err and len(err.splitlines()) == 1


def test_one_thread_is_possible_everywhere(tinyqwen, folder):
    assert tinyqwen("generate", "-m", folder, "--threads", 1, *GREEDY)[0] == 0


def test_threads_are_the_cpu_backends(tinyqwen, folder):
    code, _, err = tinyqwen("generate", "-m", folder, "--backend", "numpy", "--threads", 2, *GREEDY)
    assert code == 2 and "threads are a setting of the cpu backend, not of numpy" in err


def test_a_diff_of_the_kernels_with_the_definitions_is_no_bug(tinyqwen):
    code, out, _ = tinyqwen("diff", "--random", "tiny", "--a", "numpy", "--b", "cpu", "--json")
    assert code == 0 and json.loads(out)["verdict"] in ("same", "noise")


def test_kernels_know_float32_only(tinyqwen):
    code, _, err = tinyqwen("diff", "--random", "tiny", "--b", "cpu:float64")
    assert code == 2 and "for float32; numpy:float64" in err


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_terminal_sees_that_kernels_are_compiled_once(capsys, monkeypatch, terminal, quiet, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with options.loading_bar(quiet=quiet) as (reading, compiling):
        reading(1_500_000, 3_000_000)
        compiling("swiglu")
        compiling("rope")
    seen = capsys.readouterr().err
    assert ("2 kernels (once): rope" in seen) == ("compiling" in seen) == shown
    assert seen.count("\n") <= 1, "one line that changes"


def test_nothing_is_said_of_compiling_when_all_are_there(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with options.loading_bar(quiet=False) as (reading, _):
        reading(1, 2)
    assert "compiling" not in capsys.readouterr().err


def test_help_names_all_backends(tinyqwen):
    _, out, _ = tinyqwen("generate", "--help")
    assert "{numpy,cpu,numba,cuda,cupy,auto}" in out and "--threads N" in out
