"""Comparing two sides place by place, and the verdict: the same, rounding noise, other weights, or a bug."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.interface import host
from backends.packed import Packed
from backends.quantised import Quantised
from tinyqwen.diff.sides import Model, Side
from tinyqwen.errors import UsageError
from tinyqwen.weights import Node, walk

CHUNK = 64  # tokens of prompt a step: bounds what is kept of side A
RTOL = 1e-5  # beyond this fraction of a result's largest value, a place differs
DOUBLE_RTOL = 1e-10  # the same in float64: rounding leaves 1e-12 at most, a mistake rarely less than 1e-7
NOISE_FACTOR = 8  # for a side without float64: so much more than float32's own rounding is a mistake


@dataclass(frozen=True)
class Difference:
    """One place of one step, on both sides.

    step      prefill, or prefill 2 for a second chunk; decode 1, decode 2, ...
    path      as in a trace; see `Seeing`
    shapes, dtypes    on side A and on side B
    max_abs   the largest absolute difference; infinite if the shapes differ
    max_rel   that, in units of the largest finite magnitude on side B: of what is expected
    rms       root mean square of the differences
    """

    step: str
    path: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    max_abs: float
    max_rel: float
    rms: float

    @property
    def phase(self) -> str:
        return self.step.split()[0]

    @property
    def where(self) -> str:
        return f"{self.step}, {self.path}"


def difference(step: str, path: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """How far two results of one place are apart. Equal infinities (masks are made of them) and NaN on both sides are
    no difference; a number against either is an infinite one.

    >>> apart = difference("prefill", "norm", np.float32([1, 4, -np.inf]), np.float32([1, 5, -np.inf]))
    >>> apart.max_abs, apart.max_rel, round(apart.rms, 3)
    (1.0, 0.2, 0.577)
    """
    shapes, dtypes = (a.shape, b.shape), (str(a.dtype), str(b.dtype))
    if a.shape != b.shape:
        return Difference(step, path, shapes, dtypes, math.inf, math.inf, math.inf)
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    apart[np.isnan(apart)] = math.inf
    max_abs = float(apart.max(initial=0))
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    max_rel = max_abs / largest if largest else math.inf if max_abs else 0.0
    rms = math.sqrt(float(np.mean(apart * apart))) if apart.size else 0.0
    return Difference(step, path, shapes, dtypes, max_abs, max_rel, rms)


@dataclass
class Comparison:
    """Two sides beside each other.

    differences     every place that both sides have, in side B's order of execution
    only_a, only_b  places that one side alone has: a faster body has no inside, goldens hold layers only
    decoded         the tokens that were decoded, side A's choices
    predicted       after how many tokens both sides' greedy choices are known
    parted          the first of those where they differ: (step, tokens before it, A's choice, B's choice), or None
    """

    differences: list[Difference] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    predicted: int = 0
    parted: tuple[str, int, int, int] | None = None


def compare(
    a: Side, b: Side, ids: Sequence[int], *, decode: int = 4, chunk: int = CHUNK, forced: Sequence[int] | None = None
) -> Comparison:
    """Run both sides on the same tokens, step by step, and compare whatever both show.

    decode   how many tokens to decode after the prompt
    chunk    how many tokens of the prompt to take in a step
    forced   the tokens to decode, in place of side A's greedy choices

    >>> from tinyqwen.diff import make_side, random_model
    >>> config, weights = random_model("tiny")
    >>> a, b = (make_side(name, config, weights) for name in ("numpy", "numpy:float64"))
    >>> found = compare(a, b, [1, 2, 3], decode=1)
    >>> found.differences[0].where, max(each.max_rel for each in found.differences) < 1e-5
    ('prefill, embed_tokens', True)
    """
    found = Comparison()
    a.start()
    b.start()
    pieces = [list(ids[at : at + chunk]) for at in range(0, len(ids), chunk)]
    past = 0
    for number in range(len(pieces) + decode):
        if number < len(pieces):
            step, now = "prefill" if number == 0 else f"prefill {number + 1}", pieces[number]
        else:
            step, now = f"decode {number - len(pieces) + 1}", [found.decoded[-1]]
        outputs: dict[str, np.ndarray] = {}
        choice_a = a.step(now, outputs.__setitem__)

        def see(path: str, array: np.ndarray, step=step, outputs=outputs):
            if path in outputs:
                found.differences.append(difference(step, path, outputs.pop(path), array))
            else:
                found.only_b.append(f"{step}, {path}")

        choice_b = b.step(now, see)
        found.only_a += [f"{step}, {path}" for path in outputs]
        for at, (one, other) in enumerate(zip(choice_a, choice_b)):
            found.predicted += 1
            if one != other and found.parted is None:
                found.parted = step, past + at + 1, int(one), int(other)
        past += len(now)
        if len(pieces) - 1 <= number < len(pieces) + decode - 1:
            wanted = forced[len(found.decoded)] if forced is not None else next(iter(choice_a[-1:]), None)
            if wanted is None:
                raise UsageError(f"side {a.name} knows {len(found.decoded)} tokens of this text; lower --decode")
            found.decoded.append(int(wanted))
    return found


# ---- noise or bug -------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What `diff` found.

    a, b         names of the sides
    rtol         the tolerance, as a fraction of a result's largest value
    comparison   every place
    first        the first place beyond the tolerance, None if there is none
    verdict      same: none is; noise: rounding; weights: the sides' weights differ, and nothing else; bug
    at           where to look; a bug may be earlier than `first`, because float64 sees more sharply
    reason       one sentence with the numbers
    """

    a: str
    b: str
    rtol: float
    comparison: Comparison
    first: Difference | None
    verdict: str
    at: Difference | None
    reason: str


def diff(a: Side, b: Side, ids: Sequence[int], *, decode: int = 4, chunk: int = CHUNK, rtol: float = RTOL) -> Report:
    """Compare two sides, and if they differ say whether that is noise or a bug.

    ids     the prompt
    decode, chunk   see `compare`
    rtol    what may be: the largest difference of a result, as a fraction of its largest value

    >>> from backends import Backend; from tinyqwen.diff import random_model
    >>> config, weights = random_model("tiny")
    >>> swapped = Backend(np, bodies={"swiglu": lambda backend, gate_TF, up_TF: up_TF / (1 + np.exp(-up_TF)) * gate_TF})
    >>> right, wrong = (Model(name, each, config, weights) for name, each in [("a", Backend(np)), ("b", swapped)])
    >>> report = diff(right, wrong, [1, 2, 3])
    >>> report.verdict, report.at.where
    ('bug', 'prefill, layers.0.mlp.swiglu')
    """
    found = compare(a, b, ids, decode=decode, chunk=chunk)
    first = beyond(found, rtol)
    if not found.differences:
        raise UsageError(f"{a.name} and {b.name} have no place in common; nothing can be compared")
    if first is None:
        worst = max(found.differences, key=lambda each: each.max_rel)
        reason = (
            f"at most {size_of(worst)} of the largest value ({worst.where})" if worst.max_abs else "to the last bit"
        )
        step = found.parted[0] if found.parted else None
        if step and not any(each.step == step for each in found.differences):
            reason = f"the greedy tokens part in {step}, of which one side shows no place; all before is the same"
            return Report(a.name, b.name, rtol, found, None, "bug", None, reason)
        return Report(a.name, b.name, rtol, found, None, "same", None, reason)

    def again(a: Side, b: Side) -> Comparison:
        return compare(a, b, ids, decode=decode, chunk=chunk, forced=found.decoded)

    verdict, at, reason = judge(a, b, first, found, rtol, again)
    return Report(a.name, b.name, rtol, found, first, verdict, at, reason)


def beyond(found: Comparison, rtol: float) -> Difference | None:
    """The first place that differs by more than that."""
    return next((each for each in found.differences if not each.max_rel <= rtol), None)


def judge(
    a: Side, b: Side, first: Difference, found: Comparison, rtol: float, again: Callable[[Side, Side], Comparison]
) -> tuple[str, Difference | None, str]:
    """Verdict, place and reason for two sides that differ; `again` runs two sides on the same tokens."""
    if isinstance(a, Model) and isinstance(b, Model) and a.knows_float64 and b.knows_float64:
        weights = differing_weights(a.weights, b.weights)
        double = again(a.in_float64(), b.in_float64(a.weights if weights else None))
        if in_float64(double):
            at = beyond(double, DOUBLE_RTOL)
            if at is not None:
                return "bug", at, explain_bug(at, first, found)
            if weights:
                cause = (
                    f"{len(weights)} tensors differ, {weights[0]} first, and with side A's on both sides nothing does"
                )
                return "weights", first, f"{apart(first)}; {cause}"
            return "noise", first, f"{apart(first)}, and in float64 by {size_of(find(double, first))}"
    # A side that cannot run in float64 is held against what rounding does to the definitions.
    model = next((side for side in (a, b) if isinstance(side, Model)), None)
    if model is None:
        raise UsageError(f"{a.name} and {b.name} differ, and neither can run in float64; let one side be a backend")
    rounding = again(model.textbook(np.float32), model.textbook(np.float64))
    floor = {each.where: max(each.max_rel, 2.0**-23) for each in rounding.differences}
    beyond_noise = (
        each
        for each in found.differences
        if not each.max_rel <= max(rtol, NOISE_FACTOR * floor.get(each.where, 2.0**-23))
    )
    at = next(beyond_noise, None)
    place = at or first
    alone = f"where rounding to float32 makes {floor.get(place.where, 2.0**-23):.2g}"
    return "bug" if at else "noise", place, f"{apart(place)}, {alone}"


def find(found: Comparison, place: Difference) -> Difference:
    """The same place in another comparison; the place itself, if it is not there."""
    return next((each for each in found.differences if each.where == place.where), place)


def apart(each: Difference) -> str:
    """One clause: which place, how far apart."""
    if each.shapes[0] != each.shapes[1]:
        return f"{each.where} has shape {each.shapes[0]} on side A and {each.shapes[1]} on side B"
    if math.isinf(each.max_rel):
        return f"{each.where} is a number on one side where it is infinite, not a number or 0 on the other"
    return f"{each.where} differs by {size_of(each)} of its largest value"


def size_of(each: Difference) -> str:
    return f"{each.max_rel:.2g}"


def in_float64(found: Comparison) -> bool:
    """Whether both sides' numbers really were float64; kernels may know float32 only."""
    return not any({"float32", "float16", "bfloat16"} & set(each.dtypes) for each in found.differences)


def explain_bug(at: Difference, first: Difference, found: Comparison) -> str:
    """Why it is a bug; float64 may see it earlier than the tolerance did."""
    reason = apart(find(found, at))
    if math.isfinite(at.max_rel):
        reason += f", and in float64 still by {size_of(at)}"
    return reason if at.where == first.where else f"{reason}; the tolerance is first exceeded at {first.where}"


def differing_weights(a: Node, b: Node) -> list[str]:
    """Names of the tensors whose values differ.

    >>> from tinyqwen.weights import tree
    >>> differing_weights(tree({"embed_tokens.weight": np.ones(2)}), tree({"embed_tokens.weight": np.zeros(2)}))
    ['embed_tokens.weight']
    """
    if a is b:
        return []
    of_b: dict[str, Any] = dict(walk(b))
    return [
        path
        for path, array in walk(a)
        if not isinstance(array, Node) and array is not of_b[path] and not same(array, of_b[path])
    ]


def same(a, b) -> bool:
    """Whether two weights hold the same numbers, in whatever format."""
    a, b = (host(one).astype(np.float32) if isinstance(one, (Quantised, Packed)) else host(one) for one in (a, b))
    return np.array_equal(a, b)
