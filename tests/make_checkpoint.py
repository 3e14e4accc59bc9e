"""Write a model folder of a published shape with random weights: for benchmarks, and tests that need real sizes.

    python tests/make_checkpoint.py --size 0.5B --dtype bfloat16 --seed 0 DIR

The weights come from `tinyqwen.weights.random_weights` layer by layer, so that a 7B needs 1 GB of memory and not 30.
Tokenizer files are copied from the test data (TINYQWEN_TEST_DATA, by default ../shared/data beside the repository); the
command says so where there are none.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyqwen.checkpoint import save_checkpoint
from tinyqwen.checkpoint.save import CODES
from tinyqwen.config import Config
from tinyqwen.sizes import SIZES
from tinyqwen.weights import random_weights

TEST_DATA = Path(os.environ.get("TINYQWEN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def stream_weights(config: Config, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of that config, one layer in memory at a time. The same seed gives the same tensors."""
    yield from random_weights(replace(config, num_hidden_layers=0, layer_types=()), seed).items()
    for layer in range(config.num_hidden_layers):
        experts = config.num_experts if config.is_sparse(layer) else 0
        alone = replace(config, num_hidden_layers=1, layer_types=(), vocab_size=1, num_experts=experts,
                        decoder_sparse_step=1, mlp_only_layers=())  # fmt: skip
        for name, array in random_weights(alone, seed + 1 + layer).items():
            if name.startswith("model.layers.0."):
                yield name.replace("layers.0.", f"layers.{layer}.", 1), array


def copy_tokenizer(folder: Path) -> bool:
    """Put the Qwen2 tokenizer into that folder, if the test data is there."""
    source = TEST_DATA / "qwen2_tokenizer"
    if not source.is_dir():
        return False
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    for name in ("tokenizer_config", "generation_config"):
        shutil.copyfile(TEST_DATA / "configs" / f"Qwen2-0.5B-Instruct.{name}.json", folder / f"{name}.json")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model folder with random weights.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--size", default="0.5B", choices=SIZES, help="published shape (default 0.5B)")
    parser.add_argument("--dtype", default="bfloat16", choices=CODES)
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    config = SIZES[arguments.size].config()
    save_checkpoint(arguments.folder, config, stream_weights(config, arguments.seed), arguments.dtype)
    if not copy_tokenizer(arguments.folder):
        print(f"no tokenizer files: {TEST_DATA} has none; set TINYQWEN_TEST_DATA")


if __name__ == "__main__":
    main()
