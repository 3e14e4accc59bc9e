"""What the checkpoint tests share: small configs of every kind, and a folder of each."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyqwen.checkpoint import save, save_checkpoint
from tinyqwen.config import Config
from tinyqwen.errors import DiskFullError
from tinyqwen.weights import random_weights

TIED = Config(
    hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=30, tie_word_embeddings=True,
)  # fmt: skip
CONFIGS = {
    "tied": TIED,
    "untied": replace(TIED, tie_word_embeddings=False),
    "experts": replace(
        TIED, model_type="qwen2_moe", tie_word_embeddings=False, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=6, shared_expert_intermediate_size=10, mlp_only_layers=(0,),
    ),
}  # fmt: skip


@pytest.fixture
def configs() -> dict[str, Config]:
    return CONFIGS


@pytest.fixture(params=list(CONFIGS))
def config(request) -> Config:
    return CONFIGS[request.param]


@pytest.fixture
def make_folder(tmp_path):
    """make_folder("tied", ...) -> a folder with random weights, saved by save_checkpoint."""

    def make(kind: str = "tied", name: str = "model", **options) -> Path:
        save_checkpoint(tmp_path / name, CONFIGS[kind], random_weights(CONFIGS[kind], seed=1), **options)
        return tmp_path / name

    return make


@pytest.fixture
def write_file():
    """write_file(path, {name: array}): one safetensors file, whatever it holds, written by hand.

    `header` may change the header's dict, or its text, before it is written; `extra` bytes come at the end.
    """
    codes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8"}

    def write(path: Path, tensors: dict[str, np.ndarray], header=lambda entries: entries, extra: bytes = b"") -> None:
        entries, begin = {}, 0
        for name, array in tensors.items():
            end = begin + array.nbytes
            entries[name] = {"dtype": codes[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
            begin = end
        changed = header(entries)
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        path.write_bytes(
            len(text).to_bytes(8, "little") + text + b"".join(map(np.ndarray.tobytes, tensors.values())) + extra
        )

    return write


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Where quantised weights are kept: an empty folder for each test, never the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TINYQWEN_CACHE", str(folder))
    return folder / "weights"


@pytest.fixture(params=[OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"])
def stops_writing(request, monkeypatch):
    """stops_writing(after): a block in which the disk is full, or somebody interrupts, after so many tensors."""

    @contextlib.contextmanager
    def block(after: int):
        real, calls = save.write_tensor, itertools.count()

        def write(*arguments):
            if next(calls) >= after:
                raise request.param
            real(*arguments)

        monkeypatch.setattr(save, "write_tensor", write)
        with pytest.raises(DiskFullError if isinstance(request.param, OSError) else KeyboardInterrupt):
            yield

    return block
