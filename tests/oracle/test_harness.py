"""The adapter for lm-evaluation-harness against the harness' own Hugging Face model, on the same random checkpoint:
the same likelihoods and the same texts, and so the same scores of a task."""

from __future__ import annotations

import json

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.bench.models import CONTROL
from tinyqwen.runtime import load

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the harness' own, and of what it needs
lm_eval = pytest.importorskip("lm_eval", reason="the harness: pip install 'tinyqwen[eval]'")
TEMPLATE = (  # Qwen2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A context that is too short for some questions."""
    return write_model(tmp_path_factory.mktemp("tiny-Instruct"), 96)


def write_model(folder, context):
    write_tiny_checkpoint(folder, max_position_embeddings=context, vocab_size=263)  # no padding rows: HF says those
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": CONTROL}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    from tinyqwen.evaluate.harness import TinyqwenLM

    return TinyqwenLM(load(folder, backend="numpy"), together=3)


@pytest.fixture(scope="module")
def theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


PAIRS = [
    ("hello", " world"),
    ("hello", " word"),
    ("hello", " world, hello"),
    ("hello you", " A"),
    ("hello you ", "B"),  # the blank belongs to what follows
    ("", "hello hello"),
    ("<|im_start|>user\nhello<|im_end|>\n", "hell"),
    ("é" * 70, "e" * 20),  # longer than the context: its beginning is left out
    ("hello you", " A"),
]


def test_likelihoods(ours, theirs):
    requests = instances("loglikelihood", *PAIRS)
    expected, found = (model.loglikelihood(requests, disable_tqdm=True) for model in (theirs, ours))
    for pair, (log_p, greedy), (their_log_p, their_greedy) in zip(PAIRS, found, expected):
        assert log_p == pytest.approx(their_log_p, rel=1e-5, abs=1e-4), pair
        assert greedy == their_greedy, pair


def test_what_greedy_decoding_says_is_greedy(ours, theirs):
    [said] = theirs.generate_until(instances("generate_until", ("he", {"max_gen_toks": 1})), disable_tqdm=True)
    requests = instances("loglikelihood", ("he", said))
    assert ours.loglikelihood(requests)[0][1] == theirs.loglikelihood(requests, disable_tqdm=True)[0][1]


@pytest.mark.parametrize("length", [1, 95, 96, 97, 300])
def test_rolling_likelihoods(ours, theirs, length):
    requests = instances("loglikelihood_rolling", (("hello, you! " * 50)[:length],))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wishes",
    [
        {"until": ["<|im_end|>"], "max_gen_toks": 30},
        {"until": ["e", "\n\n"], "max_gen_toks": 30, "do_sample": False},
        {"until": [], "max_gen_toks": 90},  # six tokens of a prompt are left
    ],
    ids=["to its end", "to a letter", "cut"],
)
def test_texts(ours, theirs, wishes):
    contexts = "hello", "you and me", "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", "0123456789" * 3
    requests = instances("generate_until", *((context, wishes) for context in contexts))
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": " you"},
]


@pytest.mark.parametrize("prompt", [True, False], ids=["to answer", "to go on"])
def test_the_chat_template(ours, theirs, prompt):
    text, expected = (model.apply_chat_template(CONVERSATION, prompt) for model in (ours, theirs))
    assert text == expected
    assert ours.tok_encode(text) == theirs.tok_encode(expected)


def test_what_a_message_says_is_data(ours):
    text = ours.apply_chat_template([{"role": "user", "content": "<|im_end|>"}])
    control = [token for token in ours.tok_encode(text) if token in ours.runtime.tokenizer.control.values()]
    assert len(control) == 5, "the frame's own"
    assert "<|im_end|>" in ours.runtime.tokenizer.decode(ours.tok_encode(text), hide_control=True)


# ---- whole tasks ----

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA, train: DATA}}
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
LOSS = """
task: loss
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "e"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 12}
filter_list: [{name: letters, filter: [{function: regex, regex_pattern: "([a-h])"}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def include(tmp_path):
    docs = [
        {"question": f"{word} is", "choices": ["hello", f"{word} you", "x"], "label": n % 3}
        for n, word in enumerate("hell hello he you them who where it this no".split())
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in {"choice": CHOICE, "loss": LOSS, "written": WRITTEN}.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(tmp_path / "docs.jsonl")))
    return tmp_path


def test_scores_of_whole_tasks(theirs, folder, include):
    from tinyqwen.evaluate.run_harness import Tasks, figures

    tasks, runtime = Tasks(["choice", "loss", "written"], include=include, quiet=True), load(folder, backend="numpy")
    for chat in (False, True):
        how = {"bootstrap_iters": 0}
        found = figures(tasks.run(runtime, together=4, chat=chat, **how))
        frames = {"apply_chat_template": chat, "fewshot_as_multiturn": chat}
        results = lm_eval.simple_evaluate(theirs, tasks=tasks.names, task_manager=tasks.manager, **frames, **how)
        assert {one.task for one in found} == {"choice", "loss", "written"} and len(found) == 5
        for one, other in zip(found, figures(results), strict=True):
            assert one._replace(value=0, error=None) == other._replace(value=0, error=None)
            assert one.value == pytest.approx(other.value, rel=1e-4)


def test_home_tasks_score_the_same_in_the_harness_and_without(tmp_path, monkeypatch):
    """A random model is right where anything is: the rule is whether a reply begins with one of half the letters."""
    from tinyqwen.evaluate import home
    from tinyqwen.evaluate.run_harness import Tasks, figures
    from tinyqwen.evaluate.score import answers, scores
    from tinyqwen.tiny.generators import Item, ask

    def lenient(task, count, seed=0):
        words = "hello", "you", "who", "yes", task[:4]
        return [Item(task, ask(word), "", "", expect=r"^\W*[A-Ma-m0-4]") for word in words]

    monkeypatch.setattr(home, "held_out", lenient)
    runtime = load(write_model(tmp_path, 512), backend="numpy")
    items = home.home_items()
    ours = {score.task: score.right / score.asked for score in scores(items, answers(runtime, items))}
    tasks = Tasks(["tinyqwen"], quiet=True)
    theirs = {one.task: one.value for one in figures(tasks.run(runtime, together=5, chat=False))}
    average = theirs.pop("tinyqwen")
    assert theirs == {f"tinyqwen::{task}": value for task, value in ours.items()}
    assert len(set(ours.values())) > 1 and average == pytest.approx(sum(ours.values()) / len(ours))


def test_an_unknown_task_is_named():
    from tinyqwen.errors import UsageError
    from tinyqwen.evaluate.run_harness import Tasks

    with pytest.raises(UsageError, match="mmlu_nothing is no task"):
        Tasks(["tinyqwen", "mmlu_nothing"])
