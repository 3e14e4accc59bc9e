"""tinyqwen: the Qwen2 family of language models, written once to be read and run."""

__version__ = "0.1.0"
