"""Writes the golden files: small models with the outputs that transformers gives for them.

    python -m tests.goldens.make_goldens          from the root of the repository; needs torch and transformers

With these files every backend is compared with transformers where torch is not installed. A file holds the model itself
(`config`, the text of config.json, and `tensor:NAME` arrays, because a seed means other numbers in other releases of
NumPy), the token `ids`, and what transformers makes of them: `hidden`, `logits`, `greedy` and `gap`, explained in
`tests.oracle.reference.transformers_outputs`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tinyqwen.config import Config
from tinyqwen.config_json import parse_config, to_json

FOLDER = Path(__file__).parent
NAMES = ("tied", "window", "yarn", "heads-14-2", "moe", "moe-normalised")
OUTPUTS = ("hidden", "logits", "greedy", "gap")


def read_golden(name: str) -> tuple[Config, dict[str, np.ndarray], list[int], dict[str, np.ndarray]]:
    """The config, tensors and token ids of a golden file, and the outputs that are right for them."""
    with np.load(FOLDER / f"{name}.npz") as file:
        held = dict(file)
    tensors = {key.removeprefix("tensor:"): value for key, value in held.items() if key.startswith("tensor:")}
    config = parse_config(json.loads(str(held["config"])))
    return config, tensors, held["ids"].tolist(), {key: held[key] for key in OUTPUTS}


def write_golden(name: str) -> Path:
    from tests.helpers import tokens
    from tests.oracle.reference import CASES, GAP, sharp_weights, transformers_model, transformers_outputs

    config, seed = CASES[name]
    tensors, ids = sharp_weights(config, seed), tokens(config, 12)
    outputs = transformers_outputs(transformers_model(config, tensors), ids, 64)
    assert outputs["gap"] > GAP, f"{name}: a near tie; choose another seed in tests/oracle/reference.py"
    held = {f"tensor:{key}": value for key, value in tensors.items()}
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, config=np.array(to_json(config)), ids=np.array(ids), **outputs, **held)
    return path


if __name__ == "__main__":
    for each in NAMES:
        written = write_golden(each)
        print(f"{written.name}: {written.stat().st_size:,} bytes")
