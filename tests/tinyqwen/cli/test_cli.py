"""The command line from outside: what goes where, exit codes, and one clear line for every wrong thing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.cli.main import VERBS
from tinyqwen.cli.train import KINDS, OWN

ROOT = Path(__file__).parents[3]


def process(*arguments, input=b"", **environment):
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tinyqwen", *map(str, arguments)],
        input=input, capture_output=True, cwd=ROOT, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


# ---- what goes where ----


def test_without_arguments_three_lines_say_what_to_do(tinyqwen):
    code, out, err = tinyqwen()
    assert (code, len(out.splitlines()), err) == (0, 3, "")
    assert "tinyqwen chat  " in out and "chat --size 0.5B" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(tinyqwen, verb):
    code, out, _ = tinyqwen(verb, "--help")
    assert code == 0
    assert f"tinyqwen {verb} " in out.split("options:")[0].split("\n\n", 1)[1], "an example"


@pytest.mark.parametrize("words", ["", "--help", "--version"])
def test_what_computes_nothing_waits_for_no_library(words):
    script = f"""
import sys
from tinyqwen.cli.main import main
try:
    main({words.split()})
except SystemExit:
    pass
print(*{{"numpy", "numba", "tokenizers", "jinja2", "rich", "backends"}} & sys.modules.keys(), end="", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_model_text_alone_goes_to_standard_output(folder):
    quiet = process("generate", "-m", folder, "-n", 6, "--seed", 1, "-q", "hello")
    loud = process("generate", "-m", folder, "-n", 6, "--seed", 1, "--stats", "hello", FORCE_COLOR="1")
    assert quiet.returncode == loud.returncode == 0
    assert quiet.stderr == b""
    assert quiet.stdout == loud.stdout
    assert b"\x1b[" not in loud.stdout, "pipes are never coloured"
    assert re.search(rb"prompt \d+ tok .* TTFT .* 6 tok .* ctx \d+/512 .* seed 1 .* stop=length", loud.stderr)


def test_the_same_seed_gives_the_same_text_and_json_says_how_to_repeat_it(tinyqwen, tmp_path):
    write_tiny_checkpoint(tmp_path, endless=True)
    code, out, _ = tinyqwen("generate", "-m", tmp_path, "-n", 8, "--json", "hello")
    first = json.loads(out)
    code, out, _ = tinyqwen("generate", "-m", tmp_path, "-n", 8, "--json", "--seed", first["seed"], "hello")
    again = json.loads(out)
    assert code == 0
    assert (first["text"], first["tokens"]) == (again["text"], again["tokens"])
    assert first["finish_reason"] == "length" and first["usage"]["completion_tokens"] == 8
    assert first["sampling"]["repetition_penalty"] == 1.1, "the checkpoint's own settings"
    assert {"load_s", "ttft_s", "prefill_tps", "decode_tps"} == set(first["timings"])


def test_several_prompts_are_answered_together_one_object_a_line(tinyqwen, folder, tmp_path):
    (tmp_path / "p.txt").write_text("from a file")
    arguments = ["-m", folder, "-n", 5, "--seed", 2, "--json"]
    code, out, _ = tinyqwen("generate", *arguments, "one", "-p", "two", "-f", tmp_path / "p.txt")
    together = [json.loads(line) for line in out.splitlines()]
    alone = [json.loads(tinyqwen("generate", *arguments, text)[1]) for text in ("one", "two", "from a file")]
    assert code == 0
    assert [answer["tokens"] for answer in together] == [answer["tokens"] for answer in alone]


def test_a_piped_prompt_and_no_stream(tinyqwen, folder):
    piped = process("generate", "-m", folder, "-n", 5, "--seed", 1, "-q", input=b"hello")
    dash = process("generate", "-m", folder, "-n", 5, "--seed", 1, "-q", "--no-stream", "-", input=b"hello")
    _, out, _ = tinyqwen("generate", "-m", folder, "-n", 5, "--seed", 1, "-q", "hello")
    assert piped.stdout == dash.stdout == out.encode()


def test_a_stop_text_ends_the_answer_before_it(tinyqwen, folder):
    _, out, _ = tinyqwen("generate", "-m", folder, "-n", 40, "--seed", 1, "--json", "hello")
    text = json.loads(out)["text"]
    stop = text[7:9]
    _, out, _ = tinyqwen("generate", "-m", folder, "-n", 40, "--seed", 1, "--json", "--stop", stop, "hello")
    stopped = json.loads(out)
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_a_cut_answer_says_so(tinyqwen, tmp_path):
    write_tiny_checkpoint(tmp_path, endless=True)
    _, _, err = tinyqwen("generate", "-m", tmp_path, "-n", 3, "--greedy", "hello")
    assert "length (--max-tokens reached; the answer is cut)" in err
    _, _, err = tinyqwen("generate", "-m", tmp_path, "--context", 64, "--greedy", "hello")
    assert "context (it is full; the answer is cut)" in err


def test_raw_continues_text_and_show_prompt_shows_what_the_model_sees(tinyqwen, folder):
    _, _, err = tinyqwen("generate", "-m", folder, "-n", 1, "--raw", "--show-prompt", "-q", "hello")
    assert err == "hello\n"
    _, _, err = tinyqwen("generate", "-m", folder, "-n", 1, "--show-prompt", "-q", "-s", "Be brief.", "hello")
    assert (
        err == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n\n"
    )


def test_a_reader_that_leaves_is_no_error(folder):
    command = f"{sys.executable} -m tinyqwen generate -m {folder} -n 300 -q hello | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, timeout=60)
    assert done.stdout.endswith(b"0\n")
    assert done.stderr == b""


# ---- info and tokens ----


def test_info_lists_all_sizes_within_80_columns(tinyqwen):
    code, out, _ = tinyqwen("info")
    assert code == 0
    assert all(name in out for name in ("0.5B", "57B-A14B", "2.5-72B"))
    assert max(map(len, out.splitlines())) <= 80
    assert set(json.loads(tinyqwen("info", "--json")[1])) >= {"0.5B", "2.5-3B"}


def test_info_flags_what_public_pages_get_wrong(tinyqwen):
    _, out, _ = tinyqwen("info", "--size", "57B-A14B")
    assert "57,408,658,944" in out and "14,249,270,784" in out
    assert "one of width 20480" in " ".join(out.split())
    facts = json.loads(tinyqwen("info", "--size", "0.5B", "--json")[1])
    assert facts["kv_cache_bytes_per_token"] == {"f32": 24576, "bf16": 12288, "int8": 6528}
    assert facts["weight_bytes"]["bf16"] == 988065536
    assert any("16 query and 8 KV heads" in page for page in facts["public pages"])


def test_info_with_yarn(tinyqwen):
    shape = json.loads(tinyqwen("info", "--size", "7B", "--yarn", 4, "--json")[1])["shape"]
    assert shape["context"] == 131072 and shape["max_position_embeddings"] == 32768
    assert shape["rope_scaling"] == {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_yarn_reads_what_the_model_alone_would_not(tinyqwen, folder):
    prompt = "x " * 600
    code, _, err = tinyqwen("generate", "-m", folder, "--raw", prompt)
    assert code == 2 and "stretch it with --yarn 3, to 1536" in err
    code, out, _ = tinyqwen("generate", "-m", folder, "--raw", "--yarn", 3, "-n", 2, "--json", prompt)
    assert code == 0 and json.loads(out)["usage"]["prompt_tokens"] == 1200
    code, _, err = tinyqwen("generate", "-m", folder, "--context", 1000, "--yarn", 1.5, "hello")
    assert code == 2 and "the model's holds 768; stretch it with --yarn 2, to 1024" in err
    code, _, err = tinyqwen("trace", "-m", folder, "--context", 60, "--backend", "numpy", prompt)
    assert code == 2 and "the context holds 60" in err
    code, out, _ = tinyqwen("trace", "-m", folder, "--yarn", 3, "--view", "rope")
    assert code == 0 and "a context of 1536" in out


@pytest.mark.parametrize("words", ["info", "plan", "trace --view mem", "trace --backend numpy --decode 1 hi"])
def test_a_key_that_is_not_known_is_passed_over_where_the_flag_says_so(tinyqwen, tmp_path, words):
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "novelty": 7}))
    model = "-m", tmp_path
    verb, *rest = words.split()
    code, _, err = tinyqwen(verb, *model, *rest)
    assert code == 3 and "--ignore-config novelty" in err
    assert tinyqwen(verb, *model, "--ignore-config", "novelty", *rest)[0] == 0


def test_dca_lengthens_the_context_and_says_the_same_within_a_chunk(tinyqwen, folder):
    facts = json.loads(tinyqwen("info", "-m", folder, "--dca", "512,64", "--json")[1])
    assert facts["shape"]["context"] == 2048
    plain, chunked = (
        tinyqwen("generate", "-m", folder, "--greedy", "-n", 8, "-q", *flags, "hello")
        for flags in ([], ["--dca", "512,64"])
    )
    assert plain == chunked and plain[0] == 0
    code, out, err = tinyqwen("generate", "-m", folder, "--dca", "512,64", "--greedy", "-n", 3, "-q", "x " * 600)
    assert code == 0 and out and err == ""


def test_info_about_a_folder(tinyqwen, folder):
    facts = json.loads(tinyqwen("info", "-m", folder, "--json")[1])
    assert facts["shape"]["hidden_size"] == 24
    assert facts["stop_ids"] == [260, 262]


def test_tokens_shows_pieces_and_bytes(tinyqwen, folder):
    code, out, _ = tinyqwen("tokens", "-m", folder, "hello <|im_end|>\x1b")
    assert code == 0
    assert "hello" in out and "control" not in out and "\x1b" not in out
    _, out, _ = tinyqwen("tokens", "-m", folder, "--template", "hello <|im_end|>")
    assert "262" in out
    ids = json.loads(tinyqwen("tokens", "-m", folder, "--json", "hello")[1])["ids"]
    assert json.loads(tinyqwen("tokens", "-m", folder, "--json", "--ids", *ids)[1])["pieces"] == ["hello"]


# ---- one clear line for every wrong thing ----

WRONG_USAGE = {
    "base of no model": (["generate", "--base", "hi"], "--base and --revision need to know of which model"),
    "revision of no model": (["generate", "--revision", "main", "hi"], "--base and --revision need"),
    "two models": (["generate", "-m", "{folder}", "--size", "0.5B", "hi"], "not both"),
    "unknown size": (["generate", "--size", "3B", "hi"], "2.5-3B"),
    "base without size": (["generate", "-m", "{folder}", "--base", "hi"], "--base"),
    "no such folder": (["info", "-m", "./nowhere"], "./nowhere: no such folder"),
    "no such folder, a word": (["generate", "-m", "nowhere", "hi"], "'nowhere' is neither a folder here nor"),
    "a file for a folder": (["tokens", "-m", "{folder}/config.json", "hi"], "is a file; name the folder"),
    "tables of what is not int4": (["generate", "-m", "{folder}", "--tables", "int4", "hi"], "is about --dtype int4"),
    "tables, converting": (["convert", "-m", "{folder}", "x", "--dtype", "int8", "--tables", "int4"], "about --dtype"),
    "raw with a system message": (["generate", "-m", "{folder}", "--raw", "-s", "x", "hi"], "--raw and --system"),
    "raw plain": (["generate", "-m", "{folder}", "--raw", "--no-template", "hi"], "--raw and --no-template exclude"),
    "greedy and hot": (["generate", "-m", "{folder}", "--greedy", "--temp", "1", "hi"], "exclude each other"),
    "threads of numpy": (["generate", "-m", "{folder}", "--backend", "numpy", "--threads", "1", "hi"], "cpu backend"),
    "items of a task": (["eval", "-m", "{folder}", "--tasks", "home", "--items", "x"], "--items and --tasks exclude"),
    "shots at home": (["eval", "-m", "{folder}", "--num-fewshot", "2"], "--num-fewshot is for tasks of lm-eval"),
    "experts": (["train", "upcycle", "-m", "{folder}", "x", "--per-token", "9"], "1 to 8 of 8 experts, not 9"),
    "empty prompt": (["generate", "-m", "{folder}", ""], "empty"),
    "white prompt": (["generate", "-m", "{folder}", " \n "], "empty"),
    "several prompts as text": (["generate", "-m", "{folder}", "a", "b"], "--json"),
    "temperature": (["generate", "-m", "{folder}", "--temperature", "-1", "hi"], "temperature"),
    "temperature nan": (["generate", "-m", "{folder}", "--temperature", "nan", "hi"], "temperature"),
    "top_p and min_p": (["generate", "-m", "{folder}", "--top-p", "0", "--min-p", "2", "hi"], "min_p"),
    "max tokens": (["generate", "-m", "{folder}", "-n", "0", "hi"], "--max-tokens"),
    "seed": (["generate", "-m", "{folder}", "--seed", "-1", "hi"], "--seed"),
    "seed too large": (["generate", "-m", "{folder}", "--seed", str(2**64), "hi"], "--seed"),
    "context": (["generate", "-m", "{folder}", "--context", "100000", "hi"], "--context"),
    "yarn": (["generate", "-m", "{folder}", "--yarn", "0.5", "hi"], "--yarn must be a number from 1"),
    "yarn before any folder": (["generate", "-m", "nowhere", "--yarn", "0", "hi"], "must be a number from 1, is 0"),
    "yarn of no model": (["info", "--yarn", "4"], "--yarn and --dca are about one model"),
    "plan of no model": (["plan", "--yarn", "4"], "--yarn and --dca are about one model"),
    "dca and yarn": (
        ["generate", "-m", "{folder}", "--dca", "256,32", "--yarn", "2", "hi"], "would both stretch the context"
    ),
    "dca beyond training": (["generate", "-m", "{folder}", "--dca", "1024,32", "hi"], "distances up to 512 only"),
    "dca local": (["info", "-m", "{folder}", "--dca", "256,256"], "local_size must be smaller"),
    "empty stop": (["generate", "-m", "{folder}", "--stop", "", "hi"], "--stop"),
    "prompt too long": (["generate", "-m", "{folder}", "x " * 600], "context holds 512"),
    "prompt far too long": (["generate", "-m", "{folder}", "x" * 100000], "context"),
    "no such file": (["generate", "-m", "{folder}", "-f", "/no/such/file"], "No such file"),
    "not a text file": (["generate", "-m", "{folder}", "-f", "{folder}/model.safetensors"], "UTF-8"),
    "no such system file": (["generate", "-m", "{folder}", "-s", "@/no/such/file", "hi"], "No such file"),
    "surrogate": (["generate", "-m", "{folder}", "a\udcffb"], "UTF-8"),
    "ids": (["tokens", "-m", "{folder}", "--ids", "x"], "whole numbers"),
    "info of two": (["info", "-m", "{folder}", "--size", "0.5B"], "not both"),
    "info of none": (["info", "--size", "8B"], "2.5-7B"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_USAGE)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(tinyqwen, folder, name):
    arguments, words = WRONG_USAGE[name]
    code, out, err = tinyqwen(*(argument.replace("{folder}", str(folder)) for argument in arguments))
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("tinyqwen: ")
    assert words in err


@pytest.mark.parametrize("arguments, words", [
    (["nonsense"], "invalid choice: 'nonsense'"), (["chat", "--backend", "abacus"], "choose from 'numpy'"),
    (["generate", "--nonsense", "hi"], "generate does not take --nonsense; tinyqwen generate --help"),
    (["generate", "hi", "--temprature=1"], "does not take --temprature; did you mean --temperature?"),
    (["doctor", "extra"], "tinyqwen: doctor does not take extra"), (["convert"], "required: OUT, --dtype"),
    (["plan", "--dca", "1"], "should be CHUNK,LOCAL"), (["chat", "--seed", "x"], "--seed: invalid int value: 'x'"),
    (["train", "nonsense"], "invalid choice: 'nonsense'"), (["train", "sft"], "OUT, --data; tinyqwen train sft"),
    (["train", "sft", "--data", "x", "out", "--rate", "1"], "train sft does not take --rate"),
])  # fmt: skip
def test_what_argparse_refuses_is_one_line_too(tinyqwen, arguments, words):
    code, out, err = tinyqwen(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and words in err


def test_train_alone_tells_its_stages_with_an_example_of_each(tinyqwen):
    code, out, err = tinyqwen("train")
    assert (code, err) == (0, "")
    assert all(f"tinyqwen train {stage} " in out for stage in (*KINDS, *OWN))
    assert max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) < 30, "a page"


@pytest.mark.parametrize(
    ("break_it", "code", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), 3, "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), 3, "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), 3, "tokenizer.json"),
        (lambda folder: (folder / "generation_config.json").write_text("["), 3, "generation_config.json"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("["), 3, "tokenizer_config.json"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"), 3, "chat template"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), 3, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), 3, "safetensors"),
    ],
)
def test_a_broken_folder_is_one_clear_line_and_exit_code_3(tinyqwen, tmp_path, break_it, code, words):
    write_tiny_checkpoint(tmp_path)
    break_it(tmp_path)
    got, out, err = tinyqwen("generate", "-m", tmp_path, "hi")
    assert (got, out) == (code, "")
    assert len(err.splitlines()) == 1 and words in err


def test_a_tokenizer_of_another_model_is_refused(tinyqwen, tmp_path):
    write_tiny_checkpoint(tmp_path, vocab_size=100, eos_token_id=(1,))
    code, _, err = tinyqwen("generate", "-m", tmp_path, "hi")
    assert code == 3 and "another model's" in err


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(tinyqwen, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyqwen.memory.available_bytes", lambda: 10_000)
    write_tiny_checkpoint(tmp_path, dtype="bfloat16", torch_dtype="bfloat16")
    code, _, err = tinyqwen("generate", "-m", tmp_path, "--backend", "numpy", "hi")  # which widens the weights
    assert code == 4 and "but 10 kB are available" in err


def test_a_full_disk_and_a_lost_file_have_their_exit_codes(tinyqwen, folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyqwen.cli.generate.run", full)
    assert tinyqwen("generate", "-m", folder, "hi")[0] == 6


def test_debug_shows_where(tinyqwen):
    code, _, err = tinyqwen("generate", "--debug", "--base", "hi")
    assert code == 2 and "Traceback" in err and err.rstrip().splitlines()[-1].startswith("tinyqwen: ")


def test_a_file_cut_while_it_is_mapped_is_named(tinyqwen, tmp_path, monkeypatch):
    write_tiny_checkpoint(tmp_path)
    from tinyqwen.runtime import Runtime

    start = Runtime.start

    def cut_then_start(self, *arguments, **settings):
        os.truncate(tmp_path / "model.safetensors", 5000)
        return start(self, *arguments, **settings)

    monkeypatch.setattr(Runtime, "start", cut_then_start)
    code, _, err = tinyqwen("generate", "-m", tmp_path, "hi")
    assert code == 3
    assert len(err.splitlines()) == 1 and "model.safetensors" in err
