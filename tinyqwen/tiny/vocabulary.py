"""The tokenizer of the embedded model: byte-level BPE, trained on its own data, under Qwen2's rules.

The same normaliser, the same pre-tokeniser (so that digits stand alone), the same control tokens and chat template as
Qwen2; only there are 1536 tokens instead of 151,646.

Source: tokenizer.json and tokenizer_config.json of Qwen2-Instruct.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Bpe

from tinyqwen.needle import text_sentences
from tinyqwen.tiny.data import SHARES, SYSTEMS, items, turns_of

SIZE = 1536
CONTROL = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts(seed: int, count: int):
    """What the vocabulary is trained on: the data, in the shares that they have in training."""
    rng = np.random.default_rng((seed, 1))
    for item in islice(items(rng, SHARES), count):
        yield from (f"{turn['role']}\n{turn['content']}" for turn in turns_of(item))
    yield from islice(text_sentences(rng), count // 20)
    yield from (f"system\n{system}" for system in SYSTEMS for _ in range(count // 20))


def train_bpe(seed: int, count: int) -> Bpe:
    """Merges are the most frequent pairs of bytes, one after another; control tokens come last, as in Qwen2."""
    bpe = Bpe(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(CONTROL), initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts(seed, count), trainer)
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROL])
    return bpe


def write_tokenizer(folder: Path, seed: int, count: int = 60_000) -> None:
    """tokenizer.json and tokenizer_config.json, as checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = train_bpe(seed, count)
    bpe.save(str(folder / "tokenizer.json"))
    ids = {name: bpe.token_to_id(name) for name in CONTROL}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    about = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": name, **flags} for name, number in ids.items()},
        "additional_special_tokens": list(CONTROL[1:]),
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
