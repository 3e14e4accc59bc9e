"""Replies: many prompts at a time say what each says alone, and stop where they should."""

from __future__ import annotations

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.evaluate.replies import Prompt, replies
from tinyqwen.runtime import load
from tinyqwen.sampling import Sampling


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder, endless=True)
    return load(folder, backend="numpy")


def prompts(runtime, **how):
    texts = "a", "hello hello", "one two three four", "zz", "1 + 1 =", "hello", "b"
    return [Prompt(runtime.tokenizer.encode(text), 5 + n, **how) for n, text in enumerate(texts)]


@pytest.mark.parametrize("together", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "how", [{}, {"sampling": Sampling(do_sample=True, top_k=9), "seed": 3}], ids=["greedy", "dice"]
)
def test_company_changes_nothing(runtime, together, how):
    asked, finished = prompts(runtime, **how), []
    found = replies(runtime, asked, together=together, watch=lambda: finished.append(1))
    assert found == [replies(runtime, [prompt])[0] for prompt in asked]
    assert len(finished) == len(asked) and not any(reply.ended for reply in found)


def test_a_stop_text_ends_a_reply_and_is_no_part_of_it(runtime):
    [whole] = replies(runtime, [Prompt([104, 101], 40)])
    stop = whole.text[10:12]
    [cut] = replies(runtime, [Prompt([104, 101], 40, stop=("never said", stop))])
    assert cut.ended and cut.text == whole.text[: whole.text.index(stop)]


def test_no_more_run_together_than_asked(runtime, monkeypatch):
    seen = []
    generate = type(runtime).generate

    def spy(self, sequences, **more):
        return generate(self, sequences, before_step=lambda: seen.append(len(sequences)), **more)

    monkeypatch.setattr(type(runtime), "generate", spy)
    replies(runtime, prompts(runtime), together=3)
    assert max(seen) == 3


def test_nothing_to_ask(runtime):
    assert replies(runtime, []) == []
