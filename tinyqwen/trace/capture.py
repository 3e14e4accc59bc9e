"""Looking inside a generation: the numbers that some operations made, kept by step and place.

The tracer keeps shapes; here arrays are kept, and so only those that a question is about: the attention weights of one
layer, the router's choices, one row of every layer's output. What is kept is copied to NumPy at once, because the model
writes over some of its arrays; the model itself is not changed, and neither is any token.

    capture          a generation, with what `keep` asks for
    attention_maps   who looked at whom, in one layer
    routing          which experts each token went to, in every sparse layer
    lens             what each layer would have said, had it been the last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from backends.interface import Backend, Operation
from backends.places import Places
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.generate import CHUNK, Running, generate
from tinyqwen.step import Step
from tinyqwen.trace.parts import whole_weights
from tinyqwen.weights import Node, names_of

Keep = Callable[[str, str], bool]  # (path, operation's name) -> whether to keep the result
OPENED = {"attention": "softmax", "attention_part": "softmax_part", "route": "softmax"}  # what is inside, to be kept


class Kept(NamedTuple):
    """A result: an array, or a tuple of arrays, as NumPy copies."""

    path: str
    operation: str
    result: Any


class Part(NamedTuple):
    """One sequence's share of a step: its rows [start, stop), the first of them at `position` of the sequence.

    sequence   its number among those given to `capture`
    phase      prefill or decode
    """

    sequence: int
    start: int
    stop: int
    position: int
    phase: str


@dataclass
class CapturedStep:
    """One call of the model: its tokens, whose they were, and what was kept, in order of finishing."""

    step: Step | None = None
    config: Config | None = None
    parts: list[Part] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @property
    def asked(self) -> list[tuple[Part, int]]:
        """The sequences whose next token was chosen after this step, each with its row among the logits."""
        assert self.step is not None
        row_of = {int(row): n for n, row in enumerate(self.step.row_N)}
        return [(part, row_of[part.stop - 1]) for part in self.parts if part.stop - 1 in row_of]


def everything(step: Step | None, operation: str, result):
    """The whole result, unless it is a layer's: of that only the rows whose logits are wanted, for `lens`."""
    return result[step.row_N.tolist()] if operation == "decoder_layer" and step is not None else result


class Capture(Places):
    """Keeps copies of the results that `keep` names; of each, the part that `part` takes.

    Where what is kept is inside an operation that a backend does in one go, the definition runs in its place.

    >>> double = Operation(lambda backend, x: x + x); double.name = "double"
    >>> watching = Capture(Backend(), {}, keep=lambda path, operation: operation == "double")
    >>> double(watching, np.float32([1, 2])), watching.steps[-1].kept
    (array([2., 4.], dtype=float32), [Kept(path='double', operation='double', result=array([2., 4.], dtype=float32))])
    """

    def __init__(self, inner: Backend, names: Mapping, keep: Keep, part: Callable = everything):
        super().__init__(inner, names)
        self.keep, self.part = keep, part
        self.steps = [CapturedStep()]

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        path = self.place(operation, arrays)
        now = self.steps[-1]
        now.step, now.config = settings.get("step", now.step), settings.get("config", now.config)
        self.inside.append(path)
        in_one_go = operation.name in OPENED and operation.name in self.bodies
        try:
            if in_one_go and self.keep(f"{path}.{OPENED[operation.name]}", OPENED[operation.name]):
                out = operation.definition(door or self, *arrays, **settings)
            else:
                out = super().run(operation, arrays, settings, door)
        finally:
            self.inside.pop()
        if self.keep(path, operation.name):
            now.kept.append(Kept(path, operation.name, copies(self.part(now.step, operation.name, out))))
        return out


def copies(value):
    """NumPy copies of an array or a tuple of arrays, wherever they live.

    >>> x = np.zeros(2); copy = copies((x, x))[0]; x += 1; copy
    array([0., 0.])
    """
    if isinstance(value, (tuple, list)):
        return tuple(copies(item) for item in value)
    return value.get() if hasattr(value, "get") else np.array(value)


def capture(
    backend: Backend,
    config: Config,
    weights: Node,
    sequences: Sequence[Running],
    keep: Keep,
    *,
    vocabulary: int | None = None,
    chunk: int = CHUNK,
) -> list[CapturedStep]:
    """Run the sequences together to their ends and keep what `keep` asks for. The tokens are the same as without.

    Memory: all that is kept, until the caller lets go of it. Attention weights of one layer take 4 * H * T * S bytes
    (0.5B: 57 MB for a prompt of 1000 tokens), so ask for one layer.
    """
    watching = Capture(backend, names_of(weights), keep)
    steps = watching.steps
    steps.clear()
    number_of = {id(running.cache): number for number, running in enumerate(sequences)}
    begin = lambda: steps.append(CapturedStep())  # noqa: E731  (append itself wants the step)
    for _ in generate(watching, config, weights, sequences, vocabulary=vocabulary, chunk=chunk, before_step=begin):
        pass
    for one in steps:
        assert one.step is not None
        for start, stop, cache in one.step.spans:
            number, position = number_of[id(cache)], int(one.step.position_T[start])
            phase = "decode" if position >= sequences[number].prompt_length else "prefill"
            one.parts.append(Part(number, start, stop, position, phase))
    return steps


def missing(what: str) -> UsageError:
    return UsageError(f"{what} were not kept: `capture` keeps what it is asked for")


# ---- attention ----------------------------------------------------------------------------------------------------


def attention_weights(layer: int) -> Keep:
    """What `attention_maps` needs."""
    place = f"layers.{layer}.self_attn."
    ends = "attention.softmax", "attention_part.softmax_part"
    return lambda path, operation: path.startswith(place) and path.endswith(ends)


@dataclass
class AttentionMap:
    """Who looked at whom in one step of one sequence: row t says how token `position` + t shares out its attention.

    weights_HTS   each row is positive and sums to 1; key s is token s of the sequence
    """

    sequence: int
    phase: str
    position: int
    weights_HTS: np.ndarray

    @property
    def entropy_HT(self) -> np.ndarray:
        """How widely each query looks, in bits: 0 for one key only, log2(n) for n keys alike."""
        p = self.weights_HTS.astype(np.float64)
        return np.abs(-np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)), axis=-1))

    @property
    def sink_HT(self) -> np.ndarray:
        """The share of the sequence's first key, where attention rests that has nothing to look for (a "sink").

        Source: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
        """
        return self.weights_HTS[..., 0]


def attention_maps(steps: Sequence[CapturedStep], layer: int) -> list[AttentionMap]:
    """The attention weights of that layer, one map per step and sequence, in order. Head h is g * R + r."""
    keep, maps = attention_weights(layer), []
    for step in steps:
        kept = [one.result for one in step.kept if keep(one.path, one.operation)]
        if len(kept) < len(step.parts):
            raise missing(f"the attention weights of layer {layer}")
        results = iter(kept)
        for part in step.parts:
            total = part.position + part.stop - part.start
            assert step.config is not None
            weights_HTS = whole_weights(step.config, layer, part.position, total, results)
            maps.append(AttentionMap(part.sequence, part.phase, part.position, weights_HTS))
    return maps


def joined(maps: Sequence[AttentionMap], sequence: int = 0, last: int | None = None) -> AttentionMap:
    """The maps of one sequence as one: all its queries, or the `last` ones, against all its keys.

    What a query could not see, because it came later, is 0.

    >>> one, two = np.ones((1, 1, 1)), np.full((1, 1, 2), 0.5)
    >>> joined([AttentionMap(0, "prefill", 0, one), AttentionMap(0, "decode", 1, two)]).weights_HTS
    array([[[1. , 0. ],
            [0.5, 0.5]]])
    """
    mine = [one for one in maps if one.sequence == sequence]
    if not mine:
        raise UsageError(f"no sequence {sequence} was captured")
    (H, _, S), total = mine[-1].weights_HTS.shape, sum(one.weights_HTS.shape[1] for one in mine)
    first = max(0, total - (last or total))
    out_HTS = np.zeros((H, total - first, S), mine[0].weights_HTS.dtype)
    at = -first
    for one in mine:
        skip = max(0, -at)
        part_HTS = one.weights_HTS[:, skip:]
        at += one.weights_HTS.shape[1]
        out_HTS[:, at - part_HTS.shape[1] : max(at, 0), : part_HTS.shape[2]] = part_HTS
    return AttentionMap(sequence, mine[-1].phase, mine[0].position + first, out_HTS)


# ---- experts ------------------------------------------------------------------------------------------------------


def routers(path: str, operation: str) -> bool:
    """What `routing` needs: the choices, all experts' probabilities, and the shared expert's gate."""
    return operation == "route" or path.endswith((".mlp.gate.softmax", ".mlp.shared_expert_gate"))


@dataclass
class Routing:
    """The router's decisions in one layer, for all tokens of all steps, end to end.

    sequence_T, position_T   whose token it is, and its place there
    token_T                  ids
    expert_TA, weight_TA     the chosen experts, the heaviest first, and their weights, as `route` returned them
    probability_TE           of all experts, before the choice
    gate_T                   how much of the shared expert is added, in (0, 1)
    """

    layer: int
    sequence_T: np.ndarray
    position_T: np.ndarray
    token_T: np.ndarray
    expert_TA: np.ndarray
    weight_TA: np.ndarray
    probability_TE: np.ndarray
    gate_T: np.ndarray

    @property
    def margin_T(self) -> np.ndarray:
        """How much likelier the last chosen expert was than the first left out; NaN where none is left out."""
        A = self.expert_TA.shape[1]
        sorted_TE = -np.sort(-self.probability_TE, axis=-1)
        if sorted_TE.shape[1] == A:
            return np.full(len(sorted_TE), np.nan)
        return sorted_TE[:, A - 1] - sorted_TE[:, A]

    @property
    def tied_T(self) -> np.ndarray:
        """Whether the choice was a tie, decided by the lower number: another backend's rounding may decide it anew."""
        return self.margin_T == 0

    @property
    def load_E(self) -> np.ndarray:
        """How many times each expert was chosen."""
        return np.bincount(self.expert_TA.ravel(), minlength=self.probability_TE.shape[1])


def routing(steps: Sequence[CapturedStep]) -> dict[int, Routing]:
    """Every sparse layer's decisions. Empty for a dense model."""
    columns: dict[int, list[tuple]] = {}
    for step in steps:
        assert step.step is not None
        sequence_T = np.concatenate([np.full(part.stop - part.start, part.sequence) for part in step.parts])
        found = {one.path: one.result for one in step.kept}
        for one in step.kept:
            if one.operation != "route":
                continue
            if f"{one.path}.softmax" not in found:
                raise missing("the router's probabilities")
            mlp = one.path.removesuffix(".gate")
            gate_T = 1 / (1 + np.exp(-found[f"{mlp}.shared_expert_gate"][:, 0]))
            row = (sequence_T, step.step.position_T, step.step.token_T, *one.result, found[f"{one.path}.softmax"])
            columns.setdefault(int(one.path.split(".")[1]), []).append((*row, gate_T))
    return {layer: Routing(layer, *map(np.concatenate, zip(*rows))) for layer, rows in sorted(columns.items())}


# ---- logit lens ---------------------------------------------------------------------------------------------------


def layer_outputs(path: str, operation: str) -> bool:
    """What `lens` needs."""
    return operation == "decoder_layer"


@dataclass
class Lens:
    """What each layer would have said after one token, had it been the last layer.

    position        of that token in its sequence; the answer's next one is at position + 1
    token_L         each layer's likeliest token
    probability_L   and how likely it was
    """

    sequence: int
    phase: str
    position: int
    token_L: np.ndarray
    probability_L: np.ndarray

    @property
    def flip_L(self) -> np.ndarray:
        """Where a layer says something else than the one before it."""
        return np.concatenate([[False], self.token_L[1:] != self.token_L[:-1]])


def distribution(backend: Backend, config: Config, weights: Node, x_ND):
    """The next token's probabilities, read off the residual stream: final norm, head, softmax, as the model does.

    Of the last layer this is the model's own distribution. In between it is a guess that nobody trained; it works
    because every layer adds to the same stream.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    x_ND = rms_norm(backend, backend.xp.asarray(x_ND), weights.norm.weight, eps=config.rms_norm_eps)
    return softmax(backend, linear(backend, x_ND, weights.lm_head.weight))


def lens(
    backend: Backend, config: Config, weights: Node, steps: Sequence[CapturedStep], vocabulary: int | None = None
) -> list[Lens]:
    """One reading per token that was chosen, in order; it costs one product with the head per layer.

    vocabulary   ids from here on have no text and are never chosen
    """
    found = []
    for step in steps:
        asked = step.asked
        tops = []
        for one in step.kept if asked else []:
            if one.operation == "decoder_layer":
                probability_NV = copies(distribution(backend, config, weights, one.result))[:, :vocabulary]
                token_N = probability_NV.argmax(axis=-1)
                tops.append((token_N, probability_NV.max(axis=-1)))
        for part, row in asked:
            token_L = np.array([token_N[row] for token_N, _ in tops])
            probability_L = np.array([probability_N[row] for _, probability_N in tops])
            found.append(
                Lens(part.sequence, part.phase, part.position + part.stop - part.start - 1, token_L, probability_L)
            )
    return found
