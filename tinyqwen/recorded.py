"""Decoding as a recorded step: on a backend that records (cuda), a token is one launch of one graph.

The unchanged model runs once, on a step whose token and position lie in device memory, then the sampling, then
`advance`, which makes the chosen token the next step's. All that is recorded; replayed, it is the next token, and the
next. The host launches a step before it has read the token of the one before, and so never keeps the device waiting.

    host      launch 1   launch 2   read 1   launch 3   read 2   launch 4   read 3 ...
    device             | step 1 | step 2 | step 3 | step 4 | ...

So one step too many may have run when an answer ends. That is no harm: it wrote behind the end of the cache, whose
length is the host's to move. A recording holds as long as its sequences are the same and their caches have room; then
another is made (some 10 ms, at 256 tokens, 512, 1024, ...).

What is not recorded runs as on any backend, step by step: prompts, models with windows or chunks, sequences whose
log-probabilities are asked for, whatever somebody watches, and kernels that do not exist yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.interface import Backend
from tinyqwen.config import Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sampling import Sampling
from tinyqwen.step import Span, Step
from tinyqwen.weights import Node

# Without a body that reads positions on the device, the definition would record one position for ever.
NEEDED = {"advance", "attention", "linear", "rms_norm", "rope", "rope_tables", "swiglu", "take_rows", "update_cache"}
FEW = 256  # as in backends/cuda/sample.py
CHOICES = 256  # as FEW in backends/cuda/experts.py: beyond, experts are counted on the host
NEEDED_BY_EXPERTS = {"experts", "route", "sigmoid_gate"}


def recordable(backend: Backend, config: Config) -> bool:
    """Whether steps of that model can be recorded there."""
    needed = NEEDED | (NEEDED_BY_EXPERTS if config.num_experts else set())
    far = config.dual_chunk_attention_config or any(map(config.window, range(config.num_hidden_layers)))
    return hasattr(backend, "record") and needed <= set(backend.bodies) and not far


def narrow(sampling: Sampling) -> bool:
    """Whether the device chooses by itself: the likeliest, or among few. To sort 150,000, the host is asked."""
    return not sampling.do_sample or 0 < sampling.top_k <= FEW


def decodes_there(sequence) -> bool:
    """Whether the device can take this sequence's next step alone: one id is pending, and only the token is asked."""
    return len(sequence.pending) == 1 and sequence.log_p is None and narrow(sequence.sampling)


class OnDevice:
    """A cache as a recorded step sees it: how many tokens it holds is a number on the device, `past_1`."""

    def __init__(self, cache: KVCache, past_1: Any):
        self.layers, self.capacity, self.length, self.past_1 = cache.layers, cache.capacity, cache.length, past_1


class Recorded:
    """The decoding of some sequences on a backend that records.

    vocabulary   ids from here on are never chosen
    """

    def __init__(self, backend: Any, config: Config, weights: Node, vocabulary: int):
        self.backend, self.config, self.weights, self.vocabulary = backend, config, weights, vocabulary
        self.possible = recordable(backend, config)
        self.standing: list = []  # the sequences where the device stands; none, if nobody knows
        self.said: list[int] = []  # how many ids each of them had when the host last heard of it
        self.flying: list = []  # launched, and not yet read: (event, tokens on the host)

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_) -> None:
        self.wait()  # what is in flight writes to memory that will be given back

    def tokens(self, sequences: list) -> list[int] | None:
        """The next token of each, one of whose ids is pending in each; None if this step must be run otherwise.

        The sequences' caches have grown by that id, and the caller appends the token.
        """
        if not self.possible or not all(map(decodes_there, sequences)) or self.too_many(len(sequences)):
            return None
        standing, self.standing = self.standing, []  # if this is interrupted, begin anew
        if not self.goes_on(standing, sequences):
            self.begin(sequences)
        while len(self.flying) < 2 and self.has_room():
            self.launch()
        event, token_N = self.flying.pop(0)
        event.synchronize()
        if (token_N < 0).any():  # logits that are no numbers: a run that looks at each operation will say where
            return None
        for sequence in sequences:
            sequence.cache.length += 1
        self.said = [len(sequence.ids) + 1 for sequence in sequences]
        self.standing = list(sequences)
        return token_N.tolist()

    def too_many(self, N: int) -> bool:
        """Whether so many tokens choose more experts than the device takes at once."""
        return bool(self.config.num_experts) and N * self.config.num_experts_per_tok > CHOICES

    def goes_on(self, standing: list, sequences: list) -> bool:
        """Whether the device stands where these sequences do: nobody came, left, or was changed since."""
        return (
            [id(sequence) for sequence in standing] == [id(sequence) for sequence in sequences]
            and self.said == [len(sequence.ids) for sequence in sequences]
            and bool(self.flying or self.has_room())
        )

    def has_room(self) -> bool:
        """Whether every cache has a slot for one more step than are in flight."""
        return all(length + len(self.flying) <= capacity for length, capacity in zip(self.said, self.capacities))

    def launch(self) -> None:
        """Another step, and the copy of its tokens to the host behind it."""
        stream = self.backend.stream
        uniform_N, token_N = self.slots[0]
        self.slots.append(self.slots.pop(0))
        if self.dice:
            ahead = len(self.flying)
            uniform_N[:] = [sequence.throw(said + ahead) for sequence, said in zip(self.sequences, self.said)]
            self.uniform_N.set(uniform_N, stream)
        self.recording.replay()
        self.said_N.get(stream=stream, out=token_N, blocking=False)
        self.flying.append((stream.record(), token_N))

    # ---- making a recording ----

    def begin(self, sequences: list) -> None:
        """Record a step of these sequences, and put the device where they stand."""
        self.wait()
        self.backend.enter()
        xp, N = self.backend.xp, len(sequences)
        for sequence in sequences:
            sequence.cache.reserve(len(sequence.ids) + 1)
        self.sequences, self.said = list(sequences), [len(sequence.ids) for sequence in sequences]
        self.capacities = [sequence.cache.capacity for sequence in sequences]
        self.token_N, self.position_N, self.said_N = (xp.zeros(N, np.int64) for _ in range(3))
        self.rows_N = xp.arange(N)
        self.seen = [xp.zeros(capacity, np.int64) for capacity in self.capacities]
        self.uniform_N, self.dice = xp.zeros(N, np.float64), any(each.sampling.do_sample for each in sequences)
        self.slots = [(pinned(xp, N, np.float64), pinned(xp, N, np.int64)) for _ in range(3)]  # one more than fly
        self.upload()
        self.recording = self.backend.record(self.step)
        self.upload()  # for the first run of the step has happened

    def wait(self) -> None:
        """Until nothing is in flight."""
        if self.flying:
            self.backend.stream.synchronize()
            self.flying.clear()

    def upload(self) -> None:
        """Tokens, positions and texts of the sequences."""
        last = [sequence.ids[-1] for sequence in self.sequences]
        self.token_N.set(np.array(last, np.int64))
        self.position_N.set(np.array([len(sequence.ids) - 1 for sequence in self.sequences], np.int64))
        for sequence, seen_S in zip(self.sequences, self.seen):
            ids = sequence.ids
            seen_S.set(np.array(ids + ids[-1:] * (len(seen_S) - len(ids)), np.int64))  # seen twice is no more than once

    def step(self) -> None:
        """What is recorded: the model, the choice of a token, and the step to the next one."""
        backend, N = self.backend, len(self.sequences)
        pasts = [self.position_N[n : n + 1] for n in range(N)]
        spans = tuple(
            Span(n, n + 1, OnDevice(sequence.cache, pasts[n]))  # type: ignore[arg-type]
            for n, sequence in enumerate(self.sequences)
        )
        step = Step(self.token_N, self.position_N, self.position_N, spans, self.rows_N)
        logits_NV = forward(backend, self.config, self.weights, step)[:, : self.vocabulary]
        samplings = [sequence.sampling for sequence in self.sequences]
        places = self.token_N, self.position_N, self.said_N, self.seen
        backend.bodies["advance"](backend, logits_NV, samplings, self.uniform_N, *places)


def pinned(xp: Any, count: int, dtype: Any) -> np.ndarray:
    """Host memory for so many numbers that the device can read and write while everybody goes on."""
    return np.frombuffer(xp.cuda.alloc_pinned_memory(np.dtype(dtype).itemsize * count), dtype, count)
