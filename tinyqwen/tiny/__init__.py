"""The embedded model: a Qwen2 of 1.9 million parameters, its data, and the command that made it. README.md is its card."""
