"""What `trace` looks at: a real model with a prompt, or one of shapes alone, and how to run it once more."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import Backend, Meta
from tinyqwen.cli import options
from tinyqwen.config import Config
from tinyqwen.context import check_context
from tinyqwen.errors import UsageError
from tinyqwen.formats import shape_weights
from tinyqwen.generate import Running
from tinyqwen.kv_cache import KVCache
from tinyqwen.plan import OPENED
from tinyqwen.sampling import Sampling
from tinyqwen.tiny import FOLDER
from tinyqwen.trace.capture import CapturedStep, Keep, capture
from tinyqwen.weights import Node


@dataclass
class Subject:
    """A model, a prompt's ids, and how to write a token. Ids from `vocabulary` on have no text."""

    name: str
    backend: Backend
    config: Config
    weights: Node
    ids: list[int]
    vocabulary: int
    spell: Callable[[int], str]
    prompt: str | None
    format: str  # of the weights
    kv_format: str
    context: int
    tokenizer: Any = None  # of a real model
    sketch: Any = None  # of its head

    @property
    def real(self) -> bool:
        """Whether there are numbers and times, or shapes alone."""
        return not isinstance(self.backend, Meta)

    @property
    def stored(self) -> str:
        return "float32" if self.format == "f32" else f"{self.format} weights"

    def start(self, new_tokens: int) -> Running:
        cache = KVCache(self.backend, self.config, self.kv_format)
        return Running(self.ids, cache, Sampling(), self.context, max_new_tokens=new_tokens)

    def captured(self, keep: Keep, new_tokens: int) -> tuple[list[CapturedStep], list[int]]:
        """A run in which the numbers that `keep` asks for are kept, and all ids of its text."""
        running = self.start(new_tokens)
        steps = capture(self.backend, self.config, self.weights, [running], keep, vocabulary=self.vocabulary)
        return steps, running.ids


def subject_of(arguments: argparse.Namespace) -> Subject:
    return shapes_of(arguments) if arguments.backend == "meta" else model_of(arguments)


def model_of(arguments: argparse.Namespace) -> Subject:
    """A real model and the ids of the prompt."""
    if arguments.prompt is None:
        raise UsageError('no prompt: write one, as in: tinyqwen trace --size 0.5B "Why is the sky blue?"')
    prompt = options.read_text(arguments.prompt, "prompt")
    runtime = options.load_named(arguments)
    runtime.checkpoint.settle()
    if arguments.explain:  # what is inside an operation can be seen where its definition runs
        bodies = runtime.backend.bodies
        runtime.backend.bodies = {name: body for name, body in bodies.items() if name not in OPENED}
    tokenizer = runtime.tokenizer
    ids = tokenizer.encode(prompt) if arguments.raw else runtime.encode_chat([{"role": "user", "content": prompt}])
    spell = lambda token: tokenizer.token_bytes(token, hide_control=False).decode(errors="replace")  # noqa: E731
    return Subject(
        name_of(arguments), runtime.backend, runtime.config, runtime.checkpoint.weights, ids, tokenizer.size, spell,
        prompt, runtime.checkpoint.format, runtime.kv_format, runtime.context, tokenizer,
        runtime.checkpoint.sketch,
    )  # fmt: skip


def shapes_of(arguments: argparse.Namespace) -> Subject:
    """A model without data; to explain what is inside an operation, one that runs the definitions around it."""
    config = options.config_of(arguments)
    if arguments.context is not None:
        check_context(config, arguments.context)
    format, kv_format = ("f32" if kind == "auto" else kind for kind in (arguments.dtype, arguments.kv_dtype))
    return Subject(
        name_of(arguments), Meta(opened=OPENED if arguments.explain else frozenset()), config,
        shape_weights(config, format, arguments.tables or "int8"), [0] * arguments.tokens, config.vocab_size, str, None,
        format, kv_format, arguments.context or config.context,
    )  # fmt: skip


def name_of(arguments: argparse.Namespace) -> str:
    """What the flags call the model; the embedded one has its folder's name."""
    return arguments.size or Path(arguments.model or FOLDER).name or arguments.model
