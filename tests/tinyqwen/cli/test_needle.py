"""The verb needle: the map at any width, JSON, SVG, what Ctrl-C leaves behind, and one clear line for what is wrong."""

import json
import math
import re
from xml.etree import ElementTree

import pytest

from tests.tinyqwen.test_needle import Copier
from tinyqwen import context
from tinyqwen.errors import ModelFilesError
from tinyqwen.needle import Reader, wilson

WAYS = ["plain", "yarn=4", "dca=512,64", "dca=512,64,512", "window=100"]
FEW = ["--lengths", "512,1k", "--depths", "0,50,100"]


@pytest.fixture
def copier(monkeypatch):
    """The model is replaced by one that copies what stands at most that far back."""

    def copier(sight):
        model = Copier(sight)
        monkeypatch.setattr("tinyqwen.generate.forward", model)
        monkeypatch.setattr("tinyqwen.needle.forward", model)

    return copier


def rows(out):
    """The map's cells, row by row."""
    return [line.split("%", 1)[1].split() for line in out.splitlines() if re.match(r" *[\d.]+% ", line)]


def test_the_map_shows_what_a_model_can_see(tinyqwen, folder, copier):
    copier(sight=150)
    code, out, err = tinyqwen("needle", "-m", folder, *FEW, "--show", "accuracy")
    assert (code, err) == (0, "")
    assert out.startswith("plain: 2 of 6 found (95 %: 10 to 70 %), probability ")
    assert [row[0::2] for row in rows(out)] == [["0", "0"], ["0", "0"], ["100", "100"]]
    assert "* beyond its context of 512 tokens" in out and " 1k* " in out.splitlines()[1] + " "
    _, ranks, _ = tinyqwen("needle", "-m", folder, *FEW, "--show", "rank")
    assert rows(ranks)[2] == ["1", "1"] and int(rows(ranks)[0][0]) > 1
    _, likely, _ = tinyqwen("needle", "-m", folder, *FEW, "--show", "probability")
    assert rows(likely)[2] == ["1.00", "1.00"] and float(rows(likely)[0][0]) < 0.5


@pytest.mark.parametrize("task", ["passkey", "text", "keys"])
def test_every_way_reads_the_same_texts_and_json_tells_all_of_it(tinyqwen, folder, tmp_path, task):
    flags = [flag for way in WAYS for flag in ("--with", way)]
    file = tmp_path / "found.json"
    code, out, _ = tinyqwen(
        "needle", "-m", folder, "--task", task, *FEW, *flags, "--trials", 2, "--seed", 7, "--json", file
    )
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if " found (" in line] == WAYS
    facts = json.loads(file.read_text())
    assert set(facts) == {
        "model", "version", "backend", "dtype", "kv", "task", "template", "seed", "trials", "lengths", "depths",
        "complete", "seconds", "ways",
    }  # fmt: skip
    assert facts["lengths"] == [512, 1024] and facts["depths"] == [0, 0.5, 1] and facts["complete"] is True
    assert facts["template"] is (task != "keys")
    assert [way["way"] for way in facts["ways"]] == WAYS
    assert [way["context"] for way in facts["ways"]] == [512, 2048, 2048, 2048, 512]
    texts = []
    for way in facts["ways"]:
        assert [(cell["length"], cell["depth"]) for cell in way["cells"]] == [
            (length, depth) for length in (512, 1024) for depth in (0, 0.5, 1)
        ]
        trials = [trial for cell in way["cells"] for trial in cell["trials"]]
        assert way["asked"] == len(trials) == 12 and way["hits"] == sum(trial["hit"] for trial in trials)
        for cell in way["cells"]:
            found = cell["trials"]
            assert [trial["seed"] for trial in found] == [7, 8] and cell["asked"] == 2
            assert cell["wilson"] == [*wilson(cell["hits"], 2)] and cell["accuracy"] == cell["hits"] / 2
            assert cell["rank"] == sum(trial["rank"] for trial in found) / 2
            tokens = sum(trial["answer_tokens"] for trial in found)
            assert cell["probability"] == pytest.approx(math.exp(sum(t["logprob"] for t in found) / tokens))
            for trial in found:
                assert trial["prompt_tokens"] == cell["length"] - (1 if task == "keys" else 16)
                assert 0 <= trial["needle_at"] < trial["prompt_tokens"] and trial["rank"] >= 1
        texts.append([(trial["needle_at"], trial["answer"]) for trial in trials])
    assert all(each == texts[0] for each in texts)


def test_the_same_seed_gives_the_same_file_but_for_the_times(tinyqwen, folder):
    def found():
        code, out, _ = tinyqwen("needle", "-m", folder, *FEW, "--json", "-")
        assert code == 0
        return re.sub(r'"seconds": [\d.e-]+', "", out)

    assert found() == found()


def test_the_picture_is_whole_and_says_what_the_map_says(tinyqwen, folder, copier, tmp_path):
    copier(sight=150)
    lengths = ",".join(str(800 + n) for n in range(12))  # wider than the terminal
    file = tmp_path / "found.svg"
    code, out, _ = tinyqwen("needle", "-m", folder, "--lengths", lengths, "--depths", "0,100", "--svg", file)
    assert code == 0
    svg = ElementTree.parse(file).getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join("".join(svg.itertext()).replace("\xa0", " ").split())
    assert "plain: 12 of 24 found" in text and text.count("100 %") == 12 and "811" in text
    assert "http" not in file.read_text().replace("http://www.w3.org/2000/svg", ""), "nothing would be fetched"
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lengths_that_do_not_fit_side_by_side_go_below(tinyqwen, folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lengths = [64 * n for n in range(1, 12)]
    code, out, _ = tinyqwen(
        "needle", "-m", folder, "--task", "keys", "--lengths", ",".join(map(str, lengths)), "--depths", "33.3"
    )
    assert code == 0 and max(map(len, out.splitlines())) <= width
    heads = [word for line in out.splitlines() if line.startswith("depth ") for word in line.split()[1:]]
    assert [head.rstrip("*") for head in heads] == [str(length) for length in lengths]


def test_a_pipe_gets_no_colours_and_a_terminal_gets_them_and_a_bar(tinyqwen, folder, monkeypatch):
    flags = ["needle", "-m", folder, "--lengths", "512", "--depths", "50,100", "--with", "plain", "--with", "yarn=2"]
    _, out, err = tinyqwen(*flags)
    assert "\x1b" not in out + err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    _, out, err = tinyqwen(*flags)
    assert "\x1b[" in out and re.search(r"4 of 4 · 0:00:\d\d left", re.sub(r"\x1b\[[\d;?]*\w", "", err))
    _, out, err = tinyqwen(*flags, "-q")
    assert "left" not in err


# ---- when it does not go to its end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted: 4 of 12 questions were asked; they are kept"),
        (MemoryError("8 GB"), 4, "out of memory"),
        (ModelFilesError("model.safetensors: changed"), 3, "model.safetensors"),
    ],
)
def test_what_was_measured_is_kept(tinyqwen, folder, tmp_path, monkeypatch, stop, code, words):
    ask, calls = Reader.ask, []

    def ask_four(self, *arguments):
        calls.append(self)
        if len(calls) > 4:
            raise stop
        return ask(self, *arguments)

    monkeypatch.setattr(Reader, "ask", ask_four)
    files = tmp_path / "a.json", tmp_path / "a.svg"
    ways = ["--with", "plain", "--with", "yarn=2"]
    got, out, err = tinyqwen("needle", "-m", folder, *FEW, *ways, "--json", files[0], "--svg", files[1])
    assert got == code and words in err and len(err.splitlines()) == 1
    facts = json.loads(files[0].read_text())
    assert facts["complete"] is False and [way["asked"] for way in facts["ways"]] == [3, 1], "short ones of all first"
    assert "yarn=2: " in out and rows(out)[0][-1] == "·"
    assert ElementTree.parse(files[1]).getroot() is not None


def test_an_interrupt_before_anything_was_measured(tinyqwen, folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "ask", stop)
    code, out, err = tinyqwen("needle", "-m", folder, *FEW)
    assert code == 130 and out.startswith("plain: not measured") and "0 of 6" in err


def test_a_length_that_memory_cannot_hold_is_refused_before_weights_are_read(tinyqwen, folder, monkeypatch):
    monkeypatch.setattr("tinyqwen.runtime.open_checkpoint", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr(context, "available_bytes", lambda: 3 * 10**6)
    code, out, err = tinyqwen("needle", "-m", folder, "--lengths", "512,1024k")
    assert (code, out) == (4, "") and len(err.splitlines()) == 1
    assert "a context of 1048576 tokens needs" in err and re.search(r"what fits: --lengths \d+", err)


WRONG = {
    "base of no model": (["--base", "--lengths", "512"], "--base and --revision need"),
    "lengths": (["-m", "{}", "--lengths", "1k,x"], "--lengths takes whole numbers"),
    "no length": (["-m", "{}", "--lengths", ""], "--lengths takes whole numbers"),
    "length 0": (["-m", "{}", "--lengths", "0"], "--lengths takes whole numbers"),
    "length beyond positions": (["-m", "{}", "--lengths", "16385k"], "from 1 to 16777216"),
    "too short": (["-m", "{}", "--lengths", "40"], "too short: question and answer alone take"),
    "too short keys": (["-m", "{}", "--lengths", "8", "--task", "keys"], "keys need a length of at least 11"),
    "depths": (["-m", "{}", "--depths", "0,101"], "--depths takes numbers from 0 to 100"),
    "depth nan": (["-m", "{}", "--depths", "nan"], "--depths"),
    "no depth": (["-m", "{}", "--depths", "half"], "--depths"),
    "trials": (["-m", "{}", "--trials", "0"], "--trials must be from 1"),
    "seed": (["-m", "{}", "--seed", "-1"], "--seed"),
    "way": (["-m", "{}", "--with", "ntk=2"], "no way to run a model"),
    "yarn": (["-m", "{}", "--with", "yarn=0.1"], "--with yarn=0.1: must be a number from 1"),
    "dca": (["-m", "{}", "--with", "dca=1024,64"], "distances up to 512 only"),
    "threads": (["-m", "{}", "--threads", "0"], "threads"),
    "json in no folder": (["-m", "{}", "--json", "/no/such/folder/a.json"], "no such folder"),
    "svg is a folder": (["-m", "{}", "--svg", "."], "is a directory"),
    "both to stdout": (["-m", "{}", "--svg", "-", "--json", "-"], "cannot both"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags_are_one_clear_line(tinyqwen, folder, name):
    arguments, words = WRONG[name]
    code, out, err = tinyqwen("needle", *(argument.replace("{}", str(folder)) for argument in arguments))
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("tinyqwen: ") and words in err
