"""Generation: prefill the prompts, then decode, one token per sequence and step, until each has a reason to stop.

A sequence is its ids and a cache. Ids that are not in the cache yet are *pending*: a fresh prompt is all pending
(prefill), a sequence in mid-answer has one pending id, the newest (decode). Each step takes some pending ids of every
running sequence through the model together, so prompts are prefilled in chunks beside others that already answer.

Nothing is kept anywhere else. That makes it hard to break: interrupt a step and the ids are still pending; shorten the
cache to a common prefix and the rest is pending again, which is how a chat reuses the turns before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from backends.finite import FirstNotFinite, NotFinite
from backends.interface import Backend
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.config import Config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward, last_hidden_state
from tinyqwen.recorded import Recorded
from tinyqwen.sampling import Sampling, sample
from tinyqwen.shortlist import has_shortlist, sample_shortlisted
from tinyqwen.step import Step, make_step
from tinyqwen.weights import Node, names_of

CHUNK = 256  # tokens of prompt a step: large enough for fast products, small enough to stop soon after Ctrl-C


@dataclass(eq=False)
class Running:
    """A sequence that is being continued.

    ids             prompt and answer so far
    cache           keys and values of the first `cache.length` ids
    sampling        how its tokens are chosen
    seed            of its dice, thrown anew at each position: neither company nor interrupts change what it says
    stop_ids        ids that end it; the one that did is the last of ids
    max_new_tokens  how many tokens to add at most; None for as many as the context holds
    context         how many ids the model can look at
    finish_reason   None while running; then "stop", "length" (max_new_tokens) or "context"
    log_p           a list, to have the model's own log-probability of each new token appended (at temperature 1, of
                    all its rows, as training sees it); None: nobody asks
    """

    ids: list[int]
    cache: KVCache
    sampling: Sampling
    context: int
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    max_new_tokens: int | None = None
    finish_reason: str | None = None
    log_p: list[float] | None = None
    prompt_length: int = field(init=False)

    def __post_init__(self):
        self.prompt_length = len(self.ids)
        if not self.ids:
            raise UsageError("the prompt is empty: there is nothing to continue")
        if len(self.ids) >= self.context:
            raise UsageError(
                f"the prompt has {len(self.ids)} tokens, but the context holds {self.context}, and an answer needs "
                "room too; shorten the prompt"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, is {self.max_new_tokens}")

    @property
    def pending(self) -> list[int]:
        return self.ids[self.cache.length :]

    @property
    def new_ids(self) -> list[int]:
        """The answer so far."""
        return self.ids[self.prompt_length :]

    def throw(self, place: int) -> float:
        """The dice for the token at that place of the text, in [0, 1)."""
        return np.random.default_rng((self.seed, place)).random()

    def append(self, token: int) -> None:
        """Take a token, and note whether it is the last."""
        self.ids.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) - self.prompt_length == self.max_new_tokens:
            self.finish_reason = "length"
        elif len(self.ids) == self.context:
            self.finish_reason = "context"


class Event(NamedTuple):
    """What happened in a step: a sequence got a token, or (token None) some more of its prompt is in the cache."""

    running: Running
    token: int | None


def generate(
    backend: Backend,
    config: Config,
    weights: Node,
    sequences: Sequence[Running],
    *,
    vocabulary: int | None = None,
    chunk: int | None = None,
    before_step: Callable[[], None] = lambda: None,
    sketch: Callable[[], Any] = lambda: None,
) -> Iterator[Event]:
    """Continue all sequences together until each has a finish_reason. Setting one from outside stops it, too.

    vocabulary    ids from here on have no text (padding rows of the tables) and are never chosen
    chunk         tokens a step that prompts may take together; default: what the backend likes
    before_step   called before each step, to look whether the files are still whole
    sketch        gives the sketch of the head, or None as long as there is none; see `tinyqwen.shortlist`

    Errors: ModelFilesError names layer and tensor when numbers stop being finite.

    >>> import backends; from tinyqwen.weights import random_weights, tree
    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> backend, weights = backends.get("numpy"), tree(random_weights(config))
    >>> running = Running([1, 2, 3], KVCache(backend, config), Sampling(), context=99, max_new_tokens=2)
    >>> for event in generate(backend, config, weights, [running]): pass
    >>> len(running.new_ids), running.finish_reason, running.cache.length        # the last token was never fed back
    (2, 'length', 4)
    """
    vocabulary = vocabulary or config.vocab_size
    at_once: int = getattr(backend, "chunk", CHUNK) if chunk is None else chunk
    with Recorded(backend, config, weights, vocabulary) as recorded:
        while running := [sequence for sequence in sequences if sequence.finish_reason is None]:
            before_step()
            for sequence in running:  # interrupted after reading an id and before choosing the next: read that id again
                sequence.cache.length = min(sequence.cache.length, len(sequence.ids) - 1)
            if (tokens := recorded.tokens(running)) is not None:
                for sequence, recorded_token in zip(running, tokens):
                    sequence.append(recorded_token)
                    yield Event(sequence, recorded_token)
                continue
            taken = share(running, at_once)
            unfinished = [len(ids) < len(sequence.pending) for sequence, ids in taken]
            lengths = [len(sequence.ids) for sequence, _ in taken]
            step = make_step([(ids, sequence.cache) for sequence, ids in taken], lengths=lengths)
            at_end = [sequence for (sequence, _), more in zip(taken, unfinished) if not more]
            chosen = iter(next_ids(backend, config, weights, step, at_end, sketch(), vocabulary))
            for (sequence, _), more in zip(taken, unfinished):
                token = None if more else next(chosen)
                if token is not None:
                    sequence.append(token)
                yield Event(sequence, token)


def share(running: list[Running], chunk: int) -> list[tuple[Running, list[int]]]:
    """Which pending ids of whom go into the next step: every decoding sequence's one, prompts share what is left.

    At least one token of somebody is taken, so there is always progress.
    """
    taken, room = [], chunk
    for sequence in sorted(running, key=lambda sequence: len(sequence.pending)):
        ids = sequence.pending if len(sequence.pending) == 1 else sequence.pending[:room]
        if ids:
            taken.append((sequence, ids))
            room = max(0, room - len(ids))
    return taken


def next_ids(backend, config, weights, step: Step, at_end: list[Running], sketch, vocabulary: int) -> list[int]:
    """Run the step, and choose the next token of each sequence whose text ends in it."""
    if sketch is not None and len(at_end) == 1 and at_end[0].log_p is None and has_shortlist(at_end[0].sampling):
        (alone,) = at_end
        token = sample_shortlisted(
            backend, last_hidden_state(backend, config, weights, step), weights.lm_head.weight, sketch, seen(alone),
            sampling=alone.sampling, uniform=alone.throw(len(alone.ids)), vocabulary=vocabulary,
        )  # fmt: skip
        if token is not None:
            step.end()
            return [token]
    logits_NV = finite(backend, config, weights, step, forward(backend, config, weights, step))
    return [choose(backend, sequence, logits_V, vocabulary) for sequence, logits_V in zip(at_end, logits_NV)]


def choose(backend: Backend, sequence: Running, logits_V, vocabulary: int) -> int:
    """The sequence's next token; its log-probability is noted where that is asked for."""
    seen_N, uniform = backend.xp.asarray(seen(sequence)), sequence.throw(len(sequence.ids))
    token = int(sample(backend, logits_V[:vocabulary], seen_N, sampling=sequence.sampling, uniform=uniform))
    if sequence.log_p is not None:
        sequence.log_p.append(float(log_probability(backend, logits_V[None], np.array([token]))[0]))
    return token


def seen(sequence: Running) -> np.ndarray:
    """The ids that occur in the sequence, if that makes a difference to what comes next."""
    return np.array(sorted(set(sequence.ids)) if sequence.sampling.repetition_penalty != 1 else [], int)


def finite(backend: Backend, config: Config, weights: Node, step: Step, logits_NV):
    """The logits, if they are numbers. If not, run the step again and say where they stopped being so."""
    if bool(backend.xp.isfinite(logits_NV).all()):
        return logits_NV
    for span in step.spans:
        if span.cache is not None:
            span.cache.length -= span.stop - span.start
    try:
        forward(FirstNotFinite(backend, names_of(weights)), config, weights, step)
    except NotFinite as error:
        raise ModelFilesError(f"the model's numbers are not finite: {error}; the checkpoint is damaged") from None
    raise ModelFilesError("the model's logits are not finite, but a second run's are; is the machine's memory sound?")
