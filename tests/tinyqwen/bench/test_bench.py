"""The whole command on a tiny model, with a stub for a peer: in turn, well-formed, and clear about who is missing."""

import json
import os

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.bench import rounds, team
from tinyqwen.bench.contestants.task import Task
from tinyqwen.bench.report import HEADS
from tinyqwen.bench.rounds import Question
from tinyqwen.bench.team import Entry, Lost, Process
from tinyqwen.cli.main import main

STUB = "tests.tinyqwen.bench.stub"


@pytest.fixture
def stubs(monkeypatch):
    for name in ("stub", "other", "tinyqwen"):
        monkeypatch.setitem(team.MODULES, name, STUB)
    monkeypatch.setattr(rounds, "MACHINE", STUB)
    monkeypatch.setattr(team, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder, endless=True)
    return folder


def task(folder, dtype="f32", **options):
    return Task(folder, folder / "exports", dtype, 1, options)


def test_a_worker_answers_and_chatter_is_no_answer(folder, stubs):
    with Process(STUB, 1) as process:
        loaded = process.ask("load", **rounds.as_json(task(folder, decode=4.0)))
        assert loaded["about"]["version"] == "stub 1" and loaded["about"]["process"] != os.getpid()
        assert process.ask("decode", depth=0, tokens=3, sequences=1) == [0.25] * 3
        assert process.ask("peak") > 10**6
        with pytest.raises(Lost, match=r"AttributeError: .*juggle"):
            process.ask("juggle")
        assert process.ask("prefill", tokens=50) == 0.5  # it can go on
    assert process.process.returncode == 0


@pytest.mark.parametrize(
    "options, asking, said",
    [
        ({"answers": 0}, {}, "ValueError: cannot go on"),
        ({"answers": 0, "die": True}, {}, r"its process ended \(7\): last words"),
        ({"sleep": 5}, {"patience": 0.2}, "no answer within 0 seconds"),
    ],
)
def test_a_worker_that_fails_dies_or_hangs_says_so_in_one_line(folder, stubs, options, asking, said):
    with Process(STUB, 1) as process:
        process.ask("load", **rounds.as_json(task(folder, **options)))
        with pytest.raises(Lost, match=said) as caught:
            process.ask("prefill", tokens=1, **asking)
    assert "\n" not in str(caught.value)


def test_every_round_asks_everybody_and_the_first_is_thrown_away(folder, stubs):
    tasks = {Entry("stub", "f32"): task(folder, decode=4.0), Entry("other", "f32"): task(folder)}
    said = []
    results = rounds.run(tasks, [Question("prefill", 8), Question("decode", 2, 5, 3)], 3, 1, said.append)
    assert results.rounds[Entry("stub", "f32"), Question("decode", 2, 5, 3)] == [12.0] * 3
    assert results.rounds[Entry("other", "f32"), Question("prefill", 8)] == pytest.approx([100.0] * 3)
    assert len(results.limits) == 3 and not results.lost
    assert {question.kind for _, question in results.reads} == {"decode"}
    assert list(results.reads.values()) == [[50e9] * 3] * 2
    asked = [line.split(": ", 1) for line in said if line.startswith(("warm", "round")) and "itself" not in line]
    assert [what for what, _ in asked[:8:4]] == ["warm-up", "round 1 of 3"]
    assert [who.endswith("stub f32") for _, who in asked[::2]] == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2


def test_our_own_depth_is_compared_with_none_in_the_same_minute(folder, stubs):
    tasks = {Entry("tinyqwen", "f32"): task(folder, decode=4.0), Entry("other", "f32"): task(folder)}
    results = rounds.run(tasks, [Question("decode", 2), Question("decode", 2, 5)], 3, 1)
    assert results.shallow == {(Entry("tinyqwen", "f32"), Question("decode", 2, 5)): [4.0] * 3}


def test_who_fails_half_way_is_left_out_and_the_others_go_on(folder, stubs):
    tasks = {Entry("stub", "f32"): task(folder, answers=4), Entry("other", "f32"): task(folder)}
    results = rounds.run(tasks, [Question("prefill", 8)], 3, 1)
    assert results.lost == {Entry("stub", "f32"): "prefill 8: ValueError: cannot go on"}
    assert len(results.rounds[Entry("other", "f32"), Question("prefill", 8)]) == 3


@pytest.mark.parametrize(
    "shares, asked, kept", [([0.0], 1, 1.0), ([0.9, 0.3, 0.04, 0.0], 3, 3.0), ([0.9, 0.3, 0.5], 3, 2.0)]
)
def test_what_others_disturbed_is_measured_again_and_the_quietest_counts(shares, asked, kept):
    """Speeds are 1, 2, 3: neither the fastest nor the last is preferred."""
    process = type("", (), {"others": None})()
    speeds = iter([1.0, 2.0, 3.0])

    def ask():
        process.others = shares.pop(0)
        return next(speeds)

    before = len(shares)
    assert rounds.quietest(process, ask, 3)[0] == kept
    assert before - len(shares) == asked


def test_the_share_of_others_is_what_they_took(folder, stubs, monkeypatch):
    """The machine's processors worked 4 seconds a second, of which the worker itself next to nothing."""
    ticks = iter([100.0, 100.0, 100.0, 102.0])
    monkeypatch.setattr(team, "busy_seconds", lambda: next(ticks))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with Process(STUB, 1) as process:
        process.ask("load", **rounds.as_json(task(folder, sleep=0.5)))
        process.ask("prefill", tokens=1)
    assert 0.5 < process.others <= 1.0


# ---- the command ----

FLAGS = ["--backend", "numpy", "--prefill", "8", "--decode", "0,16", "--tokens", "2", "--batch", "3", "--rounds", "2",
         "--threads", "1", "--no-start"]  # fmt: skip


def bench(capsys, *arguments):
    code = main(["bench", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_whole_command(folder, stubs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path / "cache"))
    code, out, err = bench(
        capsys, "--model", folder, *FLAGS, "--against", "stub", "--json", tmp_path / "all.json", "--results",
        tmp_path / "results",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "all.json").read_text())
    [model] = found["models"].values()
    who = {(row["who"], row["kind"], row["depth"], row["sequences"]) for row in model["measured"]}
    assert len(who) == len(model["measured"]) == 2 * 4
    assert all(len(row["rounds"]) == 2 and row["of_ceiling"] > 0 for row in model["measured"])
    assert found["machine"]["threads"] == 1 and found["date"].startswith("20")
    [markdown] = (tmp_path / "results").glob("*.md")
    text = markdown.read_text()
    assert " | ".join(HEADS) in text and "decode 3 together" in text and "stub 1" in text
    assert json.loads(markdown.with_suffix(".json").read_text()) == found
    assert "decode 3 together over one alone" in out and "prefill 8" in out
    home = os.path.expanduser("~") + os.sep
    assert home not in text + json.dumps(found) and str(tmp_path) not in text + json.dumps(found)


def test_a_missing_peer_is_one_clear_line(folder, stubs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = bench(capsys, "--model", folder, *FLAGS, "--against", "llama.cpp,openvino")
    assert code == 0 and "tinyqwen f32" in out
    text = " ".join(out.split())
    assert "left out llama.cpp: llama_cpp and gguf not installed; pip install 'tinyqwen[bench]'" in text
    assert "left out openvino: openvino not installed" in text


def test_a_start_is_timed_in_a_process_of_its_own(folder, tmp_path):
    from tinyqwen.bench.starts import start_seconds

    assert 0.05 < start_seconds(task(folder, backend="numpy")) < 60
    with pytest.raises(Lost, match=r"no such folder|is missing"):
        start_seconds(task(tmp_path / "nowhere", backend="numpy"))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--against", "vllm"], "--against does not know 'vllm'; there are llama.cpp, openvino, transformers"),
        (["--dtype", "fp8"], "--dtype does not know 'fp8'"),
        (["--size", "9B"], "no size '9B'"),
        (["--json", "."], "is a directory"),
        (["--results", __file__], "cannot be written"),
        (["--size", "0.5B", "--model", "x"], "two models"),
        (["--prefill", "many"], "--prefill takes whole numbers"),
        (["--prefill", "0"], "--prefill takes numbers from 1"),
        (["--rounds", "0"], "--rounds must be from 1"),
        (["--batch", "1"], "--batch must be 0 or from 2"),
        (["--prefill", "", "--decode", "", "--batch", "0"], "nothing to measure"),
    ],
)
def test_wrong_flags_are_refused_before_anything_takes_time(capsys, flags, said):
    code, out, err = bench(capsys, *flags)
    assert (code, out) == (2, "") and said in err
    assert len(err.splitlines()) == 1
