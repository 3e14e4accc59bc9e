"""The embedded model in transformers: the same file, tokenizer and template give the same answers."""

from __future__ import annotations

import pytest

from tinyqwen.evaluate.score import answers
from tinyqwen.runtime import load
from tinyqwen.tiny import FOLDER
from tinyqwen.tiny.training import held_out

pytestmark = pytest.mark.oracle


def test_transformers_loads_it_and_says_the_same():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    runtime = load(FOLDER, dtype="f32")
    items = [item for task in ("add", "facts", "reverse", "pairs", "translations") for item in held_out(task, 3)]
    for item, ours in zip(items, answers(runtime, items)):
        ids = tokenizer.apply_chat_template(item.messages, add_generation_prompt=True, return_dict=False)
        assert ids == runtime.encode_chat(item.messages)
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
        assert tokenizer.decode(out, skip_special_tokens=True).strip() == ours.text.strip()
