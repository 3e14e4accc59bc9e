"""A model ready to use: backend, weights, tokenizer, template and the checkpoint's own generation settings.

runtime = load("folder/of/Qwen2-0.5B-Instruct")
running = runtime.start(runtime.encode_chat([{"role": "user", "content": "Hi"}]), max_new_tokens=40)
for _, token in runtime.generate([running]):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import backends
from tinyqwen.chat_template import Message, encode_chat, read_template
from tinyqwen.checkpoint import Checkpoint, open_checkpoint
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.generate import Event, Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.memory import require
from tinyqwen.sampling import GenerationConfig, Sampling, read_generation_config
from tinyqwen.sizes import ENDOFTEXT
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.weights import count_parameters

# What may end an answer besides the ids in the config files: published files have named one and meant the other.
END_OF_TURN = ("<|im_end|>", "<|endoftext|>")


@dataclass
class Runtime:
    """Everything that a loaded model consists of. `load` makes one."""

    backend: backends.Backend
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    generation: GenerationConfig
    template: str | None
    template_variables: dict[str, Any]
    context: int

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @property
    def is_base(self) -> bool:
        """Whether this model was never taught to chat: its config stops at the end of a text, not of a turn."""
        return self.config.eos_token_id == (ENDOFTEXT,) and len(self.generation.eos_token_id) < 2

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: those of config.json, of generation_config.json, and the ends of a turn or text."""
        ends = [self.tokenizer.control[name] for name in END_OF_TURN if name in self.tokenizer.control]
        return frozenset((*self.config.eos_token_id, *self.generation.eos_token_id, *ends))

    def encode_chat(self, messages: list[Message], *, plain: bool = False, prompt: bool = True) -> list[int]:
        """The ids of a conversation, by the checkpoint's template or (`plain`) in ChatML; `prompt`: to be answered."""
        template = None if plain else self.template
        return encode_chat(
            self.tokenizer, messages, template=template, variables=self.template_variables, prompt=prompt
        )

    def cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.backend, self.config)

    def start(
        self,
        ids: list[int],
        *,
        cache: KVCache | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> Running:
        """A sequence that continues these ids. A cache, if given, must hold the first `cache.length` of them.

        Errors: UsageError for an empty prompt, ids that the model does not have, or a prompt that fills the context;
        DoesNotFitError.
        """
        if strangers := [token for token in ids if not 0 <= token < self.config.vocab_size]:
            raise UsageError(f"id {strangers[0]} is not in the model's vocabulary of {self.config.vocab_size}")
        if self.backend.dtype.itemsize * self.config.kv_values_per_token * len(ids) > 2**28:
            needed = self.backend.dtype.itemsize * self.config.kv_values_per_token * (len(ids) + (max_new_tokens or 0))
            require(needed, f"the KV cache of {len(ids)} tokens", "shorten the prompt")
        return Running(
            list(ids),
            self.cache() if cache is None else cache,
            self.generation.sampling if sampling is None else sampling,
            self.context,
            seed,
            self.stop_ids,
            max_new_tokens,
        )

    def generate(
        self,
        sequences: Sequence[Running],
        *,
        backend: backends.Backend | None = None,
        before_step: Callable[[], None] = lambda: None,
    ) -> Iterator[Event]:
        """Continue the sequences together, see `tinyqwen.generate`. `backend`: a wrapper around this model's own."""

        def check_then_before_step():
            self.checkpoint.check_unchanged()
            before_step()

        return generate(
            backend or self.backend,
            self.config,
            self.checkpoint.weights,
            sequences,
            vocabulary=self.tokenizer.size,
            before_step=check_then_before_step,
        )


def load(
    folder: Path | str,
    *,
    backend: str = "numpy",
    context: int | None = None,
    ignore_config: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Runtime:
    """Load the model in a Hugging Face folder.

    backend         a name of `backends.NAMES`
    context         at most so many tokens, prompt and answer together; default: max_position_embeddings
    ignore_config   keys of config.json to accept although their effect is unknown
    progress        called with bytes done and bytes in all while weights are read

    Errors: ModelFilesError for every way in which the folder can be wrong; DoesNotFitError; UsageError.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():  # small files first: what is wrong there should not cost a long read
        config = read_config(folder / "config.json", ignore_config)
        if context is not None and not 1 <= context <= config.max_position_embeddings:
            raise UsageError(f"--context must be from 1 to {config.max_position_embeddings}, is {context}")
        if config.torch_dtype != "float32":
            parameters = count_parameters(config)["total"]
            require(4 * parameters, f"{parameters / 1e9:.1f} B parameters in float32", "take a smaller model")
    checkpoint = open_checkpoint(folder, ignore_config=ignore_config, dtype=np.float32, progress=progress)
    tokenizer = Tokenizer(folder)
    if tokenizer.size > checkpoint.config.vocab_size:
        raise ModelFilesError(
            f"{folder / 'tokenizer.json'}: has ids up to {tokenizer.size - 1}, but the model has "
            f"{checkpoint.config.vocab_size} rows; the tokenizer is another model's"
        )
    template, variables = read_template(folder)
    return Runtime(
        backends.get(backend),
        checkpoint,
        tokenizer,
        read_generation_config(folder),
        template,
        variables,
        context or checkpoint.config.max_position_embeddings,
    )
