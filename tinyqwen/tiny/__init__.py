"""The embedded model: a Qwen2 of 1.9 million parameters, its data, and how it was made. Its card: README.md."""

from pathlib import Path

FOLDER = Path(__file__).with_name("TinyQwen")  # as every model folder: config.json, model.safetensors, tokenizer.json
