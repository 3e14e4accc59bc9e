"""Sampling: from logits to the next token.

    logits -> repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax -> one token by chance

Each filter sets what it removes to minus infinity. The order and every corner (ties, the token that crosses a
threshold, the penalty that greedy decoding applies, too) are those of transformers: the same generation_config.json
gives the same distribution here and there.

Published Qwen2 instruct models say: temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05 (1.1 in the 0.5B and
1.5B). Source: transformers, generation/logits_process.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.interface import Cost, operation, shape_only
from tinyqwen.blocks.attention import softmax
from tinyqwen.errors import ModelFilesError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, in generation_config.json's words. The defaults change nothing and take the likeliest.

    do_sample           false: take the likeliest token (greedy)
    temperature         > 0; below 1 sharpens, above 1 flattens
    top_k               keep the k likeliest and all ties with the k-th; 0 keeps all
    top_p               in (0, 1]; keep the smallest set of likeliest tokens whose probability reaches top_p
    min_p               in [0, 1]; remove tokens less likely than min_p times the likeliest
    repetition_penalty  > 0; above 1 makes every token that has occurred less likely
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def complaints(self) -> list[str]:
        """What is out of range, a sentence each; empty when all is well.

        >>> Sampling(temperature=-1, top_p=0).complaints()
        ['temperature must be above 0, is -1', 'top_p must be above 0 and at most 1, is 0']
        """
        rules = {
            "temperature": ("above 0", lambda x: 0 < x < math.inf),
            "top_k": ("a whole number from 0", lambda x: x >= 0 and x == int(x)),
            "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
            "min_p": ("from 0 to 1", lambda x: 0 <= x <= 1),
            "repetition_penalty": ("above 0", lambda x: 0 < x < math.inf),
        }
        found = []
        for name, (range_, holds) in rules.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
                found.append(f"{name} must be {range_}, is {value}")
        return found


@dataclass(frozen=True)
class GenerationConfig:
    """What generation_config.json says: how to choose, when to stop."""

    sampling: Sampling = Sampling()
    eos_token_id: tuple[int, ...] = ()
    max_new_tokens: int | None = None


def read_generation_config(folder: Path | str) -> GenerationConfig:
    """The generation_config.json of that folder; without one, greedy.

    Errors: ModelFilesError, naming the file and all values out of range.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return GenerationConfig()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(Sampling)]
        # A missing top_k means 50 and not "off" in this format, but only where sampling is on.
        sampling = Sampling(**{"top_k": 50, **{name: raw[name] for name in names if raw.get(name) is not None}})
        eos = raw.get("eos_token_id")
        eos = tuple(int(token) for token in (eos if isinstance(eos, list) else [] if eos is None else [eos]))
        limit = raw.get("max_new_tokens")
        if not sampling.do_sample:
            sampling = Sampling(repetition_penalty=sampling.repetition_penalty)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"max_new_tokens must be a whole number from 1, is {limit}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFilesError(f"{path}: cannot be used ({error}); download it again, or delete it") from None
    if complaints := sampling.complaints():
        raise ModelFilesError(f"{path}: {'; '.join(complaints)}")
    return GenerationConfig(sampling, eos, limit)


def with_flags(sampling: Sampling, **flags: Any) -> Sampling:
    """The model's own sampling with a person's wishes (None: no wish). Temperature 0 means greedy.

    >>> with_flags(Sampling(do_sample=True, temperature=0.7), top_p=0.9, min_p=None)
    Sampling(do_sample=True, temperature=0.7, top_k=0, top_p=0.9, min_p=0.0, repetition_penalty=1.0)
    >>> with_flags(Sampling(do_sample=True, temperature=0.7), temperature=0).do_sample
    False

    Errors: UsageError lists every wish out of range.
    """
    wishes = {name: value for name, value in flags.items() if value is not None}
    if wishes.get("temperature") == 0:
        wishes = {**wishes, "temperature": 1.0, "do_sample": False}
    elif wishes.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        wishes.setdefault("do_sample", True)
    wished = dataclasses.replace(sampling, **wishes)
    if complaints := wished.complaints():
        raise UsageError("; ".join(complaints))
    return wished


@operation
def sample(backend, logits_V, seen_N, *, sampling, uniform):
    """Choose one token. `uniform` in [0, 1) is the dice: the caller's, so that a seed means the same everywhere.

    logits_V   of one sequence's last token
    seen_N     the ids that occur in the sequence, prompt included; only the repetition penalty asks for them

    >>> import numpy as np; from backends import get
    >>> coin = Sampling(do_sample=True, top_k=2)
    >>> [int(sample(get("numpy"), np.float32([5, 1, 5]), np.array([]), sampling=coin, uniform=u)) for u in (0.4, 0.6)]
    [0, 2]
    """
    xp = backend.xp
    logits_V = scaled(backend, logits_V, seen_N, sampling)
    if not sampling.do_sample:
        return xp.argmax(logits_V)
    if not sampling.top_k:
        return draw(backend, narrowed(backend, logits_V, sampling), uniform)
    id_N = likeliest(backend, logits_V, top_k=sampling.top_k)  # from here on it is about 20 numbers, not 150,000
    return id_N[draw(backend, narrowed(backend, logits_V[id_N], sampling), uniform)]


@sample.cost
def _(logits_V, seen_N, *, sampling, uniform):
    # Not what the sorting costs, but what cannot be avoided: each logit is read once and compared.
    return Cost(shape_only((), int), flops=len(logits_V), read=logits_V.nbytes, written=8)


def draw(backend, logits_N, uniform):
    """The place that the dice fall on."""
    xp = backend.xp
    kept_N = xp.flatnonzero(logits_N > -xp.inf)
    mass_N = xp.cumsum(softmax(backend, logits_N[kept_N]))
    chosen = xp.searchsorted(mass_N, uniform * mass_N[-1], side="right")
    return kept_N[xp.minimum(chosen, len(kept_N) - 1)]


def filtered(backend, logits_V, seen_N, sampling):
    """The logits after penalty, temperature and filters; what is removed is minus infinity. For looking at."""
    xp = backend.xp
    logits_V = scaled(backend, logits_V, seen_N, sampling)
    if not sampling.do_sample:
        return logits_V
    id_N = likeliest(backend, logits_V, top_k=sampling.top_k or len(logits_V))
    kept_V = xp.full_like(logits_V, -xp.inf)
    kept_V[id_N] = narrowed(backend, logits_V[id_N], sampling)
    return kept_V


def scaled(backend, logits_V, seen_N, sampling):
    """The logits after penalty and temperature, in float32; the caller's are not touched."""
    logits_V = penalised(backend, logits_V, seen_N, sampling.repetition_penalty)
    if sampling.do_sample and sampling.temperature != 1.0:
        logits_V /= sampling.temperature
    return logits_V


def penalised(backend, logits_V, seen_N, penalty):
    """A copy of the logits in which those of `seen_N` are lower, if the penalty is above 1."""
    xp = backend.xp
    logits_V = logits_V.astype(backend.dtype)  # a copy
    if penalty != 1.0:
        seen_logits_N = logits_V[seen_N]
        logits_V[seen_N] = xp.where(seen_logits_N < 0, seen_logits_N * penalty, seen_logits_N / penalty)
    return logits_V


@operation
def likeliest(backend, logits_V, *, top_k):
    """The ids of the k likeliest tokens and of all ties with the k-th, in ascending order.

    >>> import numpy as np; from backends import get
    >>> likeliest(get("numpy"), np.float32([1, 3, 2, 2, 0]), top_k=2)
    array([1, 2, 3])
    """
    xp = backend.xp
    if top_k >= len(logits_V):
        return xp.arange(len(logits_V))
    kth = xp.partition(logits_V, -top_k)[-top_k]
    return xp.flatnonzero(~(logits_V < kth))


@likeliest.cost
def _(logits_V, *, top_k):
    # Each is read once and compared. How many ties there are depends on the data; counted: none.
    id_N = shape_only((min(top_k, len(logits_V)),), int)
    return Cost(id_N, flops=len(logits_V), read=logits_V.nbytes, written=id_N.nbytes)


@operation
def by_likelihood(backend, logits_N):
    """The places of the logits in the order of their size; of equals, the lower place first.

    >>> import numpy as np; from backends import get
    >>> by_likelihood(get("numpy"), np.float32([2, 1, 2, 0]))
    array([3, 1, 0, 2])
    """
    return backend.xp.argsort(logits_N, kind="stable")


@by_likelihood.cost
def _(logits_N):
    N = len(logits_N)
    place_N = shape_only((N,), int)
    return Cost(place_N, flops=N * max(N - 1, 0).bit_length(), read=logits_N.nbytes, written=place_N.nbytes)


def narrowed(backend, logits_N, sampling):
    """The likeliest tokens' logits after top-p and min-p; what is removed is minus infinity."""
    xp = backend.xp
    if sampling.top_p < 1.0:
        ascending_N = by_likelihood(backend, logits_N)
        mass_N = xp.cumsum(softmax(backend, logits_N[ascending_N]))
        remove_N = mass_N <= 1 - sampling.top_p
        remove_N[-1] = False  # the likeliest always stays
        logits_N[ascending_N[remove_N]] = -xp.inf
    if sampling.min_p > 0.0:
        probability_N = softmax(backend, logits_N)
        logits_N[probability_N < sampling.min_p * probability_N.max()] = -xp.inf
    return logits_N
