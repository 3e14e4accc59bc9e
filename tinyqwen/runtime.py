"""A model ready to use: backend, weights, tokenizer, template and the checkpoint's own generation settings.

runtime = load("folder/of/Qwen2-0.5B-Instruct")
running = runtime.start(runtime.encode_chat([{"role": "user", "content": "Hi"}]), max_new_tokens=40)
for _, token in runtime.generate([running]):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import backends
from tinyqwen.chat_template import Message, encode_chats, read_template
from tinyqwen.checkpoint import Checkpoint, open_checkpoint
from tinyqwen.checkpoint.upload import upload
from tinyqwen.config import Config, DualChunk
from tinyqwen.config_json import read_config
from tinyqwen.context import check_context, check_memory, check_prompt, stretched
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.formats import weight_bytes
from tinyqwen.generate import CHUNK, Event, Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.memory import give_back, require
from tinyqwen.placing import check_device, free_bytes, split, stays_here
from tinyqwen.prepare import prepare
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
    kv_format: str = "f32"

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
        return self.encode_chats([messages], plain=plain, prompt=prompt)[0]

    def encode_chats(
        self, conversations: list[list[Message]], *, plain: bool = False, prompt: bool = True
    ) -> list[list[int]]:
        """The ids of each of many conversations."""
        template = None if plain else self.template
        return encode_chats(
            self.tokenizer, conversations, template=template, variables=self.template_variables, prompt=prompt
        )

    def cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.backend, self.config, self.kv_format)

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
        check_prompt(self.config, self.context, len(ids))
        needed = self.cache().bytes_at(len(ids) + (max_new_tokens or 0), CHUNK)
        if needed > 2**28:
            hint = "shorten the prompt" + (", or take --kv-dtype int8" if self.kv_format != "int8" else "")
            what = f"the KV cache of {len(ids)} tokens in {self.kv_format}"
            require(needed, what, hint, free_bytes(self.backend))
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
            sketch=lambda: self.checkpoint.sketch,
        )


def load(
    folder: Path | str,
    *,
    backend: str = "cpu",
    threads: int | None = None,
    dtype: str = "auto",
    tables: str | None = None,
    keep: bool = True,
    mapped: bool | None = None,
    sketched: bool = True,
    kv_dtype: str = "auto",
    context: int | None = None,
    yarn: float | None = None,
    dca: DualChunk | None = None,
    gpu_layers: int | None = None,
    ignore_config: tuple[str, ...] = (),
    together: bool = True,
    progress: Callable[[int, int], None] | None = None,
    compiling: Callable[[str], None] | None = None,
) -> Runtime:
    """Load the model in a Hugging Face folder.

    backend         a name that `backends.get` knows
    threads         of the cpu backend; default: the cores that this process may use
    dtype           the weights' format: f32, bf16, int8, int4; auto: as stored, but on numpy, which has no kernels for
                    other types, f32. tables, keep, mapped: as of `open_checkpoint`; definitions take mapped files
    sketched        whether a sketch of a large head may be drawn, to choose tokens from (`tinyqwen.shortlist`): the
                    same tokens sooner, for 77 MB of memory in the 0.5B
    kv_dtype        the caches' format: f32, bf16, int8; auto: see `cache_format`
    context         at most so many tokens, prompt and answer together; default: all that the model can look at
    yarn            run the model at so many times its trained context, whatever config.json says of it
    dca             run the model with Dual Chunk Attention, in chunks of that kind
    gpu_layers      how many layers, from the first, the GPU runs; the others run on the cpu backend. Default: all
    ignore_config   keys of config.json to accept although their effect is unknown
    together        whether several sequences may be in a step; if never, there are fewer kernels to compile and to load
    progress        called with bytes done and bytes in all while weights are read
    compiling       called with the name of each kernel before it is compiled, which happens once on a machine

    Errors: ModelFilesError for every way in which the folder can be wrong; DoesNotFitError; UsageError.
    """
    folder = Path(folder)
    try:
        computes = backends.get(backend, threads=threads if gpu_layers is None else None)
    except ValueError as error:
        raise UsageError(str(error)) from None
    device, backend = computes.name == "cuda", computes.name
    if gpu_layers is not None:
        computes = split(computes, gpu_layers, threads)
    if (folder / "config.json").is_file():  # small files first: what is wrong there should not cost a long read
        config = stretched(read_config(folder / "config.json", ignore_config), yarn, dca)
        check_room(config, dtype, backend, tables)
        if context is not None:
            check_context(config, context)
        if context is not None or yarn is not None or dca is not None:  # a context that nobody asked for need not fit
            format = loaded_format(config, dtype, backend)
            check_memory(
                config, context or config.context, format=format, tables=tables or "int8",
                kv=cache_format(kv_dtype, computes, format), kernels="attention" in computes.bodies,
                room=free_bytes(computes) if gpu_layers is None else None,
            )  # fmt: skip
        if device:
            check_device(computes, config, loaded_format(config, dtype, backend), tables, gpu_layers)
    with ThreadPoolExecutor(1) as beside:  # 0.5 s for the tokenizer, in which the weights are read
        tokenizer_to_be = beside.submit(Tokenizer, folder)
        checkpoint = open_checkpoint(
            folder, ignore_config=ignore_config, dtype=weight_format(dtype, backend), tables=tables, keep=keep,
            mapped=mapped if computes.bodies and not device else True, packed=takes_packed(computes),
            sketched=sketched and takes_sketch(computes),
            progress=progress,
        )  # fmt: skip
        tokenizer = tokenizer_to_be.result()
    give_back()
    if device:
        stays = stays_here(gpu_layers)
        weights = upload(computes.at(0), checkpoint.weights, stays, progress)
        checkpoint = replace(checkpoint, weights=weights, maps=checkpoint.maps if gpu_layers is not None else ())
    checkpoint = replace(checkpoint, config=stretched(checkpoint.config, yarn, dca))
    if tokenizer.size > checkpoint.config.vocab_size:
        raise ModelFilesError(
            f"{folder / 'tokenizer.json'}: has ids up to {tokenizer.size - 1}, but the model has "
            f"{checkpoint.config.vocab_size} rows; the tokenizer is another model's"
        )
    template, variables = read_template(folder)
    generation = read_generation_config(folder)
    kv_format = cache_format(kv_dtype, computes, checkpoint.format)
    prepare(
        computes, checkpoint.config, checkpoint.weights, generation.sampling,
        kv_format=kv_format, packing=checkpoint.packing, sketching=checkpoint.sketching, together=together,
        compiling=compiling,
    )  # fmt: skip
    give_back()
    checkpoint.settle(wait=False)  # not before: finding the kernels would take nearly half as long again beside it
    return Runtime(
        computes,
        checkpoint,
        tokenizer,
        generation,
        template,
        variables,
        context or checkpoint.config.context,
        kv_format,
    )


def cache_format(kv_dtype: str, backend: backends.Backend, weights: str) -> str:
    """The caches' format that `kv_dtype` means, beside weights of that format.

    auto is bf16 where weights are rounded to bf16 or further and there are kernels for it: what it loses is less than
    what the weights have lost (measured in tests/tinyqwen/test_kv_cache.py), it is what transformers does, and a long
    context is read in half the time. Weights in f32 are meant exactly, and so is the numpy backend: f32.
    """
    if kv_dtype == "auto":
        return "f32" if weights == "f32" or not backend.bodies else "bf16"
    return kv_dtype


def weight_format(dtype: str, backend: str) -> str | None:
    """What `open_checkpoint` is asked for: on a backend without kernels of its own, auto is its default."""
    return None if dtype == "auto" and backend == "numpy" else dtype


def loaded_format(config: Config, dtype: str, backend: str) -> str:
    """The format that the weights will have, as far as config.json tells."""
    if config.quantization_config:
        return config.quantization_config.format
    stored = "bf16" if config.torch_dtype == "bfloat16" else "f32"
    wanted = weight_format(dtype, backend) or "f32"
    return stored if wanted == "auto" else wanted


def takes_packed(backend: backends.Backend) -> bool:
    """Whether this backend has kernels for bf16 weights in 12 bits."""
    return backend.name == "cpu" and "bf16" in backend.features  # type: ignore[attr-defined]


def takes_sketch(backend: backends.Backend) -> bool:
    """Whether this backend has kernels that read a sketch faster than the head."""
    return backend.name == "cpu" and "vnni" in backend.features  # type: ignore[attr-defined]


def check_room(config: Config, dtype: str, backend: str, tables: str | None) -> None:
    """DoesNotFitError before anything is read, if weights that have to be made anew need more memory than there is."""
    format = weight_format(dtype, backend) or "f32"
    stored = {"float32": "f32", "bfloat16": "bf16"}.get(config.torch_dtype)
    if config.quantization_config or format in ("auto", stored):
        return  # mapped, more or less
    parameters = count_parameters(config)["total"]
    hint = "take a smaller model" if format == "int4" else "take a smaller model, or --dtype int4"
    require(weight_bytes(config, format, tables or "int8"), f"{parameters / 1e9:.1f} B parameters in {format}", hint)
