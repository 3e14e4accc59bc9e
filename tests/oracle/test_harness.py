"""The adapter for lm-evaluation-harness against the harness' own Hugging Face model, on the same random checkpoint:
the same likelihoods and the same texts, and so the same scores of a task."""

from __future__ import annotations

import json

import pytest

from tests.checkpoints import CONTROL, write_tiny_checkpoint
from tinyqwen.runtime import load

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the harness' own, and of what it needs
lm_eval = pytest.importorskip("lm_eval", reason="the harness: pip install 'tinyqwen[eval]'")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-Instruct")
    write_tiny_checkpoint(folder, max_position_embeddings=96, vocab_size=263)  # no padding rows: they would say those
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
    assert len(control) == 3, "the frame's own"
    assert "<|im_end|>" in ours.runtime.tokenizer.decode(ours.tok_encode(text), hide_control=True)
