"""Ways to look far back: one model, as config.json says or with YaRN, Dual Chunk Attention or a window, to be compared.

plain                     as config.json says
yarn=FACTOR               slower rotations and a temperature, for texts of FACTOR times the trained length
dca=CHUNK,LOCAL           Dual Chunk Attention
dca=CHUNK,LOCAL,TRAINED   and YaRN's temperature for texts longer than TRAINED
window=W                  every layer sees the last W tokens
A+B                       both, where that means anything
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tinyqwen.config import SLIDING, Config
from tinyqwen.config_json import parse_config, to_json
from tinyqwen.context import chunks, stretched
from tinyqwen.errors import ModelFilesError, UsageError

PARTS: dict[str, Callable[[str], Any]] = {"yarn": float, "dca": chunks, "window": int}


def as_config(way: str, config: Config) -> Config:
    """The config of a model that is run that way.

    >>> config = Config(8, 16, 2, 2, 9, max_position_embeddings=512)
    >>> as_config("yarn=4", config).context, as_config("window=64", config).window(0)
    (2048, 64)

    Errors: UsageError for what is no way, and for what config.json could not say either.
    """
    said = parse(way)
    window = said.pop("window", None)
    try:
        config = stretched(config, **said)
        if window is not None:
            config = replace(config, sliding_window=window, layer_types=(SLIDING,) * config.num_hidden_layers)
            parse_config(json.loads(to_json(config)))  # one place knows the rules
    except (UsageError, ModelFilesError) as error:
        raise UsageError(f"{way}: {re.sub('^--(dca|yarn):? ', '', str(error))}") from None
    return config


def parse(way: str) -> dict:
    """
    >>> parse("yarn=2+window=64"), parse("plain")
    ({'yarn': 2.0, 'window': 64}, {})
    """
    said: dict = {}
    for part in [] if way == "plain" else way.split("+"):
        kind, _, value = part.partition("=")
        try:
            if kind in said:
                raise ValueError
            said[kind] = PARTS[kind](value)
        except (KeyError, ValueError, TypeError, argparse.ArgumentTypeError):
            raise UsageError(
                f"{way!r} is no way to run a model; there are plain, yarn=4, dca=CHUNK,LOCAL, dca=CHUNK,LOCAL,TRAINED "
                "and window=W, in whole tokens"
            ) from None
    return said
