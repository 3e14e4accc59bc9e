# %% [markdown]
# # 11. Break it
# Goal: find a bug in a model that runs, answers, and is wrong, by asking where it first parts from a right one.
#
# A wrong language model seldom fails. It talks: nonsense after twenty tokens, or slightly worse than it should. The
# logits differ, but so do those of any two correct programs. What helps is to run both on the same tokens, compare
# every operation, and look at the FIRST one that differs: all later ones inherit the difference.
# Read beside this: tinyqwen/diff/compare.py. For real models:
# python -m tinyqwen diff --size 0.5B --b transformers "Hello"

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np
from rich.console import Console

from backends import Backend, get
from tinyqwen.cli.diff import print_report
from tinyqwen.diff import Model, diff, make_side, random_model
from walkthrough.bugs import BUGS

console = Console(highlight=False, no_color=True)
config, weights = random_model("tiny")  # five layers; the odd ones are sparse and see a window of four tokens
prompt = [1, 61, 8, 3, 24, 41, 50, 12, 7, 88, 19, 5]
right = Model("right", get("numpy"), config, weights)


def planted(operation, body, weights=weights):
    """The same model with one operation replaced by a wrong body. No block is touched."""
    return Model("broken", Backend(np, bodies={operation: body}), config, weights)


def broken(name):
    """The model with one of the twelve bugs."""
    return planted(BUGS[name].operation, BUGS[name].body)


# %% [markdown]
# ## Not every difference is a bug
# float32 rounds each result to 24 bits, float64 to 53. So the same lines in two types differ a little everywhere, and
# more with every layer. To ask whether a difference is rounding, run BOTH sides in float64: rounding shrinks by nine
# orders, a bug stays. Here the tolerance is set too tight on purpose.

# %%
noise = diff(make_side("numpy", config, weights), make_side("numpy:float64", config, weights), prompt, rtol=1e-7)
print_report(console, noise)
assert noise.verdict == "noise"

# %% [markdown]
# ## Bug one: fluent at first
# A port of Llama's own code. The story behind each bug is in walkthrough/bugs.py; read it after you have looked.

# %%
first = diff(right, broken("rope-neighbours"), prompt)
print()
print_report(console, first)

# %% [markdown]
# q_proj and k_proj are right, and what RoPE makes of them is not: the bug is in rope, in the first layer. Everything
# below is beyond the tolerance too, and means nothing. Position 0 is turned by no angle, so one token hides it:

# %%
hidden = diff(right, broken("rope-neighbours"), prompt[:1], decode=0)
print("\na prompt of one token:", hidden.verdict)
assert (first.verdict, hidden.verdict) == ("bug", "same")

# %% [markdown]
# ## Bug two: right in prefill, wrong in decode
# Tests of whole prompts never see this one. `decode` runs on the tokens of side A on both sides: otherwise the first
# token that flips would make all others differ, and nothing could be compared.

# %%
second = diff(right, broken("decode-position"), prompt)
print()
print_report(console, second)
assert second.at.where == "decode 1, rope_tables[0]"

# %% [markdown]
# ## Bug three: smaller than the tolerance
# eps is added to the root, and not below it. Where activations are large that changes the sixth digit only, and the
# tolerance does not see it there. float64 has digits to spare: its test names the true place, however small the step.

# %%
loud = random_model("tiny")[1]
loud.embed_tokens.weight = loud.embed_tokens.weight * np.float32(15)
bug = BUGS["eps-outside"]
third = diff(Model("right", get("numpy"), config, loud), planted(bug.operation, bug.body, loud), prompt)
print("\nlarge activations:", third.reason)
assert third.at.path == "layers.0.input_layernorm" and third.at.max_rel < third.rtol < third.first.max_rel

# %% [markdown]
# ## How to look for a bug
# 1. Look at the first place in order of execution, at nothing else.
# 2. Its phase: does decode alone show it?
# 3. Its layer: if that is not layer 0, what has this layer that the ones before have not?
# 4. Its operation: read it beside its definition in tinyqwen/blocks.

# %% What we know now
assert noise.at.max_rel < 1e-6 < first.at.max_rel  # noise is small, but small is not yet noise:
assert third.at.max_rel < 1e-5 and third.verdict == "bug"  # float64 tells them apart
assert first.at.path == "layers.0.self_attn.rope" and second.at.phase == "decode"

# %%
# Exercise 1. `window-plus-one` looks back one token too far. Which layer shows it first? Say it before you run it.
layer = ...
# assert diff(right, broken("window-plus-one"), prompt).at.path.startswith(f"layers.{layer}.")


# %%
# Exercise 2. What is the longest prompt that hides that bug, if nothing is decoded? A number of tokens.
def verdict(tokens):
    return diff(right, broken("window-plus-one"), prompt[:tokens], decode=0).verdict


longest = ...
# assert verdict(longest) == "same" and verdict(longest + 1) == "bug"

# %%
# Exercise 3. Plant a thirteenth bug: scores divided by K instead of its root. The right body, to build upon, is
# `tinyqwen.blocks.attention.scores.definition`; the wrong one is a function (backend, q_GRTK, k_GSK, **settings).
wrong_scores = ...
# assert np.isclose(diff(right, planted("scores", wrong_scores), prompt).at.max_rel, config.head_dim**0.5 - 1)
