"""Are the shapes in names true, and is float64 absent? Every local of the model's code is looked at while it runs.

`q_THK` promises three axes of sizes T, H and K. The grammar of a suffix, after the last underscore:

    a capital with an optional lower-case tail     one axis: T, Kh
    a digit                                        one axis of exactly that size: x_T1, kv_2GSK
    a lower-case letter at the start               one axis, a part of the capital's: q_tHK, some of the T tokens

with at least one capital in all, so that `head_dim` and `layer_0` are ordinary names. The letters of `config.letters`
have their size everywhere, but for F and M (an expert is a feed-forward part with another F). All others mean one size
within a function call, where what an earlier turn of a loop left behind no longer counts. Values without a shape, and
arrays without a name, are not seen.
"""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from backends.gradient import Gradient
from tests.helpers import CONFIGS, small_weights, tokens
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

SUFFIX = re.compile(r"_((?=.*[A-Z])[a-z]?(?:[A-Z][a-z]?|[0-9])+)$")
AXIS = re.compile(r"[A-Z][a-z]?|[0-9]|[a-z]")
EVERYWHERE = ("D", "H", "G", "R", "K", "Kh", "V", "E", "A")
MODULES = ("tinyqwen.blocks.", "tinyqwen.model", "tinyqwen.kv_cache", "tinyqwen.step")


def axes_of(name: str) -> list[str] | None:
    found = SUFFIX.search(name)
    return AXIS.findall(found[1]) if found else None


class SuffixCheck:
    """A context in which every line of those modules is followed by a look at the function's local variables."""

    def __init__(self, modules, sizes, forbidden_dtype=None):
        self.modules, self.sizes, self.forbidden = tuple(modules), dict(sizes), forbidden_dtype
        self.seen: set[tuple[str, str]] = set()  # (function, name)
        self.wrong: dict[tuple[str, str], str] = {}  # (function, name) -> complaint

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.on_call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def on_call(self, frame, event, arg):
        if not frame.f_globals.get("__name__", "").startswith(self.modules):
            return None
        bound: dict[str, tuple[object, int]] = {}  # name -> its value, and the line that had run when it was first seen
        past: set[str] = set()  # names that still hold what an earlier turn of a loop left in them
        line_before = frame.f_lineno

        def on_line(frame, event, arg):  # "line" comes before each line, "return" after the last one
            nonlocal line_before
            for name, value in list(frame.f_locals.items()):
                if name not in bound or bound[name][0] is not value:
                    bound[name] = value, line_before
                    past.discard(name)
            if frame.f_lineno < line_before:  # a jump back: another turn, or the head of a call of several lines
                past.update(name for name, (_, line) in bound.items() if line >= frame.f_lineno)
            line_before = frame.f_lineno
            self.look(frame, {name: value for name, (value, _) in bound.items() if name not in past})
            return on_line

        return on_line(frame, event, arg)

    def look(self, frame, names):
        """Compare the suffixes of these local names with their values, and with each other."""
        function = frame.f_code.co_name
        known = {letter: (size, "the config") for letter, size in self.sizes.items()}
        for name, value in names.items():
            shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
            if not isinstance(shape, tuple) or dtype is None:  # a dtype has a shape, too
                continue
            if self.forbidden is not None and dtype == self.forbidden:
                self.wrong[function, name] = f"is {dtype}"
            axes = axes_of(name)
            if axes is None:
                continue
            self.seen.add((function, name))
            if len(axes) != len(shape):
                self.wrong[function, name] = f"before line {frame.f_lineno}: has shape {shape}"
                continue
            for axis, size in zip(axes, shape):
                meant, by = (int(axis), "its name") if axis.isdigit() else known.setdefault(axis, (size, name))
                if size != meant:
                    self.wrong[function, name] = (
                        f"before line {frame.f_lineno}: has shape {shape}, but {axis} = {meant} in {by}"
                    )


def everywhere(config) -> dict[str, int]:
    return {letter: size for letter, size in config.letters.items() if letter in EVERYWHERE}


def run_all_phases(backend, config):
    """Training, prefill of two sequences, chunked prefill, decode, and a cache that grows."""
    weights = small_weights(config, backend)
    caches = [KVCache(backend, config), KVCache(backend, config)]
    steps = [
        [(tokens(config, 11), None), (tokens(config, 8), None)],
        [(tokens(config, 11), caches[0]), (tokens(config, 8), caches[1])],
        [(tokens(config, 12), caches[0]), ([5], caches[1])],
        [([6], caches[0]), ([7], caches[1])],
        [(tokens(config, 250), caches[0])],
    ]
    for parts in steps:
        forward(backend, config, weights, make_step(parts))
    if getattr(config, "dual_chunk_attention_config", None) or backend.xp is not np:  # who does not train
        return
    tensors = {name: backend.xp.asarray(tensor) for name, tensor in random_weights(config).items()}
    tape = Gradient(backend, tensors)  # and the way back
    log_p_N = log_probability(tape, forward(tape, config, tree(tensors), make_step(steps[0])), np.array([3, 4]))
    tape.backward(log_p_N, backend.xp.ones_like(log_p_N))


@pytest.mark.many
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_suffix_is_true_and_nothing_is_float64(backend, config):
    sizes = list(everywhere(config).values())
    assert len(set(sizes)) == len(sizes), "sizes of the test's config must differ, or a swap would not show"
    with SuffixCheck(MODULES, everywhere(config), np.float64) as check:
        run_all_phases(backend, config)
    assert not check.wrong, "\n".join(f"{at[0]}: {at[1]} {text}" for at, text in check.wrong.items())
    if not backend.bodies:  # compiled bodies have no locals to look at
        functions = {function for function, _ in check.seen}
        assert {"forward", "decoder_layer", "rms_norm", "rope", "linear", "scores", "_grow", "swiglu"} <= functions
        assert {"attention_part", "softmax_part", "merge_parts"} <= functions or not config.dual_chunk_attention_config
        assert {"sparse_moe", "route", "experts"} <= functions or not config.num_experts
        assert len(check.seen) > 70


def planted(x_TD, weight_DK, H):
    y_THK = (x_TD @ weight_DK).reshape(len(x_TD), H, -1)
    y_TKH = y_THK  # a lie: axes swapped
    first_TK = y_THK[:, 0]
    first_T1 = first_TK  # a lie: K is not 1
    double = x_TD.astype(np.float64)
    part_tD = x_TD[:2]  # true: t need not be T
    other_TD = x_TD[:2]  # a lie: T is 5 in this call
    for n in (1, 2, 3):
        head_ND = x_TD[:n]  # true: N is another count in each turn ...
        tail_ND = x_TD[n:]  # ... and a lie: within a turn it is one
        both_ND = head_ND  # true
    return y_TKH, first_T1, double, part_tD, other_TD, tail_ND, both_ND


def test_planted_lies_are_caught():
    with SuffixCheck([__name__], {"H": 2, "K": 3, "D": 4}, np.float64) as check:
        planted(np.zeros((5, 4), np.float32), np.zeros((4, 6), np.float32), 2)
    assert {name for _, name in check.wrong} == {"y_TKH", "first_T1", "double", "other_TD", "weight_DK", "tail_ND"}


@pytest.mark.parametrize(
    "name, axes",
    {
        "q_THK": ["T", "H", "K"], "cos_T1Kh": ["T", "1", "Kh"], "kv_2GSK": ["2", "G", "S", "K"], "d_out_TD": ["T", "D"],
        "q_tHK": ["t", "H", "K"], "head_dim": None, "x": None, "layer_0": None, "Kh": None, "xp": None,
    }.items(),
)  # fmt: skip
def test_the_grammar_of_a_suffix(name, axes):
    assert axes_of(name) == axes
