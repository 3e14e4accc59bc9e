"""`tinyqwen diff`: the table, the verdicts as exit codes, JSON, and one clear line for wrong usage."""

import json
import sys

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tests.goldens.make_goldens import FOLDER
from tests.tinyqwen.test_diff import PLACES, RIGHT, wrong
from tinyqwen.cli.main import main
from walkthrough.bugs import BUGS


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `tinyqwen diff` in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        code = main(["diff", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("more", [[], ["--all"], ["--rtol", "1e-7"], ["--b", "numpy:bf16-weights"]])
def test_the_table_fits_and_needs_no_colour(command, monkeypatch, width, more):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, err = command("--random", "tiny", *more)
    assert err == "" and "\x1b" not in out and "…" not in out
    assert max(map(len, out.splitlines())) <= width
    for word in ("prefill", "decode", "embed_tokens", "layers.", "lm_head", "greedy tokens: "):
        assert word in out, word
    assert ("rms" in out) == (width == 100)


def test_exit_codes_and_verdicts(command):
    code, out, _ = command("--random", "tiny")
    assert code == 0 and out.splitlines()[-1].startswith("same: at most ")
    assert "layers.0-4: " in out and "beyond" not in out, "layers within the tolerance are one line"
    code, out, _ = command("--random", "tiny", "--rtol", "1e-7")
    assert code == 0 and "\nnoise: prefill, layers.0.input_layernorm differs by " in out
    assert out.count("<- noise") == 1 and "layers.1-4: " in out
    code, out, _ = command("--random", "tiny", "--b", "numpy:bf16-weights")
    assert code == 1 and "\nweights: prefill, embed_tokens " in out and out.count("<- weights") == 1


def test_a_bug_is_marked_where_it_is(command, monkeypatch):
    for name in BUGS:
        sides = {"numpy": RIGHT, "numpy:float64": wrong(name)}
        monkeypatch.setattr("tinyqwen.diff.make_side", lambda side, *_, sides=sides: sides[side])
        code, out, _ = command("--random", "tiny", "--decode", "2")
        marked = [line for line in out.splitlines() if "<- bug" in line]
        assert code == 1 and len(marked) == 1, name
        step, path = PLACES[name].split(", ")
        assert marked[0].split()[0] == path
        assert (out.index("<- bug") > out.index("\ndecode")) == (step == "decode 1")


def test_every_place_is_listed_in_order_of_its_layer(command):
    _, out, _ = command("--random", "tiny", "--all", "--tokens", "9")
    decode = out.index("\ndecode")
    places = [line.split()[0] for line in out[:decode].splitlines()[4:]]
    assert len(set(places)) == len(places) > 100
    assert places.index("layers.0") < places.index("layers.1.input_layernorm") < places.index("lm_head")


def test_json_holds_everything(command):
    code, out, _ = command("--random", "tiny", "--json", "--decode", "2", "--tokens", "5", "--seed", "3")
    report = json.loads(out)
    assert (code, report["verdict"], report["first"], len(report["prompt"])) == (0, "same", None, 5)
    assert len(report["decoded"]) == 2 and report["greedy"] == {"compared": 7, "parted": None}
    assert {"step", "path", "shapes", "dtypes", "max_abs", "max_rel", "rms"} == set(report["places"][0])
    _, out, _ = command("--random", "tiny", "--json", "--b", "numpy:bf16-weights")
    assert "Infinity" not in out and "NaN" not in out and json.loads(out)["at"]["path"] == "embed_tokens"


def test_any_folder_and_goldens_will_do(command, tmp_path):
    code, out, err = command("--tokens", "5", "--decode", "1")
    assert code == 0 and "16x192" not in out and "5x192" in out and "embedded model" in err
    write_tiny_checkpoint(tmp_path)
    for prompt in (["hello"], ["--raw", "hello"], ["--tokens", "7"]):
        code, out, err = command("-m", tmp_path, "-q", *prompt)
        assert (code, err) == (0, "") and "greedy tokens: all " in out
    code, out, _ = command("--b", f"goldens:{FOLDER / 'tied.npz'}")
    assert code == 0 and "layers.0-1" in out and "only one side shows" in out


def test_both_sides_are_stretched(command, tmp_path):
    write_tiny_checkpoint(tmp_path)
    for stretch in (["--yarn", "2"], ["--dca", "256,32"]):
        assert command("-m", tmp_path, "--tokens", "600", "-q")[0] == 2, "beyond the context"
        code, out, err = command("-m", tmp_path, "--tokens", "600", "-q", "--decode", "1", *stretch)
        assert (code, err) == (0, "") and " ".join(stretch) in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--random", "tiny", "--yarn", "0.5"], 2, "--yarn must be a number from 1"),
        (["-m", "{folder}", "--dca", "256,32", "--yarn", "2"], 2, "would both stretch the context"),
        (["--b", f"goldens:{FOLDER / 'tied.npz'}", "--yarn", "2"], 2, "leave out --yarn and --dca"),
        (["--random", "tiny", "--a", "cupid"], 2, "no side 'cupid'; there are numpy,"),
        (["--random", "tiny", "--b", "numpy:float8"], 2, "numpy:float64"),
        (["--random", "6B"], 2, "tiny, 0.5B"),
        (["--random", "tiny", "hello"], 2, "no tokenizer"),
        (["--random", "tiny", "--size", "0.5B"], 2, "two models"),
        (["--random", "tiny", "--decode", "-1"], 2, "--decode"),
        (["--random", "tiny", "--tokens", "0"], 2, "--tokens"),
        (["--random", "tiny", "--tokens", "40000"], 2, "context of 32768"),
        (["--random", "tiny", "--rtol", "nan"], 2, "--rtol"),
        (["--random", "tiny", "--chunk", "0"], 2, "--chunk"),
        (["--random", "tiny", "--b", "transformers"], 2, "--model"),
        (["--b", "goldens:nothing.npz"], 2, "nothing.npz"),
        (["--b", f"goldens:{__file__}"], 3, "not a golden file"),
        (["--b", "goldens:x.npz", "--random", "tiny"], 2, "leave out"),
        (["--b", f"goldens:{FOLDER / 'tied.npz'}", "--a", "goldens:x"], 2, "x"),
        (["--a", f"goldens:{FOLDER / 'tied.npz'}", "--decode", "99"], 2, "lower --decode"),
        (["-m", "{folder}", ""], 2, "empty"),
        (["-m", "{folder}", "--tokens", "4", "hello"], 2, "exclude"),
    ],
)
def test_wrong_usage_is_one_clear_line(command, tmp_path, arguments, code, words):
    write_tiny_checkpoint(tmp_path)
    raw = ["--raw"] if "" in arguments else []
    got, out, err = command(*raw, *(word.replace("{folder}", str(tmp_path)) for word in arguments))
    assert (got, out) == (code, "") and words in err and len(err.splitlines()) == 1


def test_without_transformers_its_side_says_what_to_install(command, tmp_path, monkeypatch):
    write_tiny_checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = command("-m", tmp_path, "--b", "transformers", "-q")
    assert code == 2 and "pip install" in err and len(err.splitlines()) == 1
