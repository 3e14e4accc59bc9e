"""Models to measure: folders with random weights of a published shape, made once and kept; nothing is downloaded.

Speed does not depend on what the weights say, only on how many there are. Random ones also keep every contestant
honest: no text to end early, nothing to guess.

A folder holds what a real one does: config.json, bfloat16 weights, and a tokenizer.json as large as the real one (its
151,387 merges are made up), because reading that file is part of how long a start takes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy, and so safetensors, the word bfloat16)
import numpy as np
from safetensors import safe_open

from backends.cache_folder import cache_folder
from tinyqwen.checkpoint import save_checkpoint
from tinyqwen.checkpoint.folder import INDEX, find_weights, read_index
from tinyqwen.config import Config
from tinyqwen.sizes import SIZES
from tinyqwen.tokenizer import BYTE_OF
from tinyqwen.weights import random_weights

Progress = Callable[[int, int], None]  # bytes done, bytes in all
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPLIT = (  # Qwen2's own
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def random_model(folder: Path, config: Config, seed: int = 0, progress: Progress | None = None) -> Path:
    """That folder, with a model of this config written into it unless it is there already.

    config.json is written last, so an interrupt leaves nothing that looks like a model.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    room = config.vocab_size - len(CONTROL)
    merges = made_up_merges(max(0, min(151643, room) - 256), seed)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(merges)), encoding="utf-8")
    save_checkpoint(folder, config, stream_weights(config, seed, progress))
    return folder


def sized_model(size: str, progress: Progress | None = None) -> Path:
    """The folder of a published size with random weights, in the cache folder."""
    return random_model(cache_folder() / "random" / size, SIZES[size].config(), progress=progress)


def stream_weights(config: Config, seed: int, progress: Progress | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of that config, one layer in memory at a time. The same seed gives the same tensors.

    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> [name for name, _ in stream_weights(config, seed=0)][:2]
    ['model.embed_tokens.weight', 'model.norm.weight']
    """
    total = config.num_hidden_layers + 1
    yield from random_weights(replace(config, num_hidden_layers=0, layer_types=()), seed).items()
    for layer in range(config.num_hidden_layers):
        if progress:
            progress(layer + 1, total)
        experts = config.num_experts if config.is_sparse(layer) else 0
        alone = replace(config, num_hidden_layers=1, layer_types=(), vocab_size=1, num_experts=experts,
                        decoder_sparse_step=1, mlp_only_layers=())  # fmt: skip
        for name, array in random_weights(alone, seed + 1 + layer).items():
            if name.startswith("model.layers.0."):
                yield name.replace("layers.0.", f"layers.{layer}.", 1), array


def stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a model folder as float32, one in memory at a time: what exporters read."""
    source = find_weights(folder)
    for file in dict.fromkeys(read_index(source).values()) if source.name == INDEX else [source.name]:
        with safe_open(folder / file, framework="numpy") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name).astype(np.float32)


# ---- a tokenizer of the real size ----


def made_up_merges(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """That many merges, each of two earlier tokens, no two of which spell the same.

    >>> merges = made_up_merges(1000)
    >>> texts = [left + right for left, right in merges]
    >>> len(texts), len(set(texts)), max(map(len, texts)) <= 12
    (1000, 1000, True)
    """
    dice, tokens = random.Random(seed), list(BYTE_OF)
    known, merges = set(tokens), []
    while len(merges) < count:
        pair = dice.choice(tokens), dice.choice(tokens)
        text = "".join(pair)
        if len(text) <= 12 and text not in known:
            known.add(text)
            tokens.append(text)
            merges.append(pair)
    return merges


def tokenizer_json(merges: list[tuple[str, str]], extra: tuple[str, ...] = ()) -> dict:
    """A byte-level BPE like Qwen2's, in the format of the tokenizers library; extra tokens are added last."""
    vocab = {character: number for number, character in enumerate(BYTE_OF)}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + n, "content": content, **plain, "special": content in CONTROL}
        for n, content in enumerate((*CONTROL, *extra))
    ]
    flags = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", **flags}]},
        "post_processor": {"type": "ByteLevel", **flags},
        "decoder": {"type": "ByteLevel", **flags},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [" ".join(pair) for pair in merges],
        },
    }  # fmt: skip
