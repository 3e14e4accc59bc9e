"""How long a text may be: what the config says, what a person asks for, and what memory allows.

    the model's context     max_position_embeddings; with YaRN its factor times the trained one, in chunks at least four
                            times chunk_size: `Config.context`
    this session's          --context N: prompt and answer together, at most the model's

Every token leaves a key and a value behind, so a context is memory. What cannot fit is refused before weights are read,
with the numbers and with what would fit; not at token 90,000 of a long prompt.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import replace

from tinyqwen.config import Config, DualChunk
from tinyqwen.config_json import parse_config, to_json
from tinyqwen.errors import DoesNotFitError, ModelFilesError, UsageError
from tinyqwen.files import size_in_words
from tinyqwen.formats import FORMATS
from tinyqwen.kv_cache import KV_FORMATS
from tinyqwen.memory import available_bytes
from tinyqwen.plan import Memory, longest_context, memory

LONGEST = 2**24  # beyond it, positions are not exact in float32


def stretched(config: Config, yarn: float | None = None, dca: DualChunk | None = None) -> Config:
    """The config with YaRN of that factor or with Dual Chunk Attention, where asked for; else as it is.

    Errors: UsageError for a factor below 1, a context beyond LONGEST, and what config.json could not say either.
    """
    if dca is not None:
        config = replace(config, dual_chunk_attention_config=dca)
    if yarn is not None:
        config = yarned(config, yarn)
    if config.dual_chunk_attention_config and (dca or yarn):
        try:
            parse_config(json.loads(to_json(config)))  # one place knows the rules
        except ModelFilesError as error:
            raise UsageError(f"{'--dca' if dca else '--yarn'}: {error}") from None
    return config


def chunks(text: str) -> DualChunk:
    """What --dca says, for argparse: CHUNK,LOCAL or CHUNK,LOCAL,TRAINED.

    >>> chunks("32768,1024")
    DualChunk(chunk_size=32768, local_size=1024, original_max_position_embeddings=0)
    """
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise argparse.ArgumentTypeError(f"{text!r} should be CHUNK,LOCAL in tokens, such as 32768,1024")
    return DualChunk(*numbers)


def factor(text: str) -> float:
    """What --yarn says, for argparse, before there is a model to ask how much is too much. Errors: UsageError.

    >>> factor("1.5")
    1.5
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise UsageError(f"--yarn must be a number from 1, is {text}; published models take 4")
    return number


def yarned(config: Config, yarn: float) -> Config:
    most = LONGEST // config.trained_context
    if not 1 <= yarn <= most:
        raise UsageError(f"--yarn must be a number from 1 to {most}, is {yarn:g}; published models take 4")
    return config.with_yarn(yarn)


def check_context(config: Config, context: int) -> None:
    """UsageError unless the model has such a context."""
    if context < 1:
        raise UsageError(f"--context must be at least 1, is {context}")
    if context > (LONGEST if config.dual_chunk_attention_config else config.context):
        raise UsageError(f"--context is {context}, but the model's holds {config.context}; {advice(config, context)}")


def check_prompt(config: Config, context: int, tokens: int) -> None:
    """UsageError if that many tokens leave no room for an answer in this session's context."""
    if tokens >= context:
        more = "raise --context" if tokens < config.context else advice(config, tokens + 1)
        raise UsageError(
            f"the prompt has {tokens} tokens, but the context holds {context}, and an answer needs room too: shorten "
            f"the prompt, or {more}"
        )


def advice(config: Config, tokens: int) -> str:
    """How the model can look at so many tokens.

    >>> from tinyqwen.sizes import SIZES
    >>> advice(SIZES["7B"].config(), 100_000)
    'stretch it with --yarn 4, to 131072'
    """
    factor = math.ceil(tokens / config.trained_context)
    if factor * config.trained_context > LONGEST:
        return f"take less: positions end at {LONGEST}"
    beyond = "" if factor <= 4 else " (published models take 4: expect less)"
    return f"stretch it with --yarn {factor}, to {factor * config.trained_context}{beyond}"


# ---- memory ----


def check_memory(
    config: Config,
    context: int,
    *,
    format: str,
    kv: str,
    tables: str = "int8",
    kernels: bool = True,
    flag: str = "--context",
    room: int | None = None,
) -> None:
    """DoesNotFitError if a session of that context needs more memory than there is.

    format, tables   of the weights, as of `tinyqwen.formats`
    kv               of the cache
    kernels          whether attention has a fast body; its definition stores its scores
    flag             what a person may say a smaller context with
    room             how many bytes there are; default: what this machine has
    """
    room = available_bytes() if room is None else room
    if room is None:
        return

    def needed(format: str, kv: str) -> Memory:
        planned = memory(config, context, format, kv, tables=tables)
        return planned if kernels else planned._replace(kv=planned.kv + planned.scores)  # both grow with the context

    asked = needed(format, kv)
    if asked.total <= room:
        return
    fits = []
    if longest := longest_context(asked, context, room):
        fits.append(f"{flag} {longest}")
    formats = (format,) if config.quantization_config else FORMATS[FORMATS.index(format) :]
    for smaller, smaller_kv in itertools.product(formats, KV_FORMATS[KV_FORMATS.index(kv) :]):
        if needed(smaller, smaller_kv).total <= room:
            flags = [f"--dtype {smaller}"] * (smaller != format) + [f"--kv-dtype {smaller_kv}"] * (smaller_kv != kv)
            fits.append(f"all of it with {' '.join(flags)}")
            break
    raise DoesNotFitError(
        f"a context of {context} tokens needs {size_in_words(asked.total)} ({size_in_words(asked.weights)} of weights "
        f"in {format}, {size_in_words(asked.kv)} of cache at {asked.kv // context} bytes a token in {kv}, "
        f"{size_in_words(asked.activations + asked.logits)} besides), but {size_in_words(room)} are available; "
        + (f"what fits: {' or '.join(fits)}" if fits else "take a smaller model")
    )
