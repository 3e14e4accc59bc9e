# %% [markdown]
# # 26. Ruling out: one token of 151,936, and most of them never looked at
# Goal: bound a sum from a rough copy of its numbers, and choose the likeliest token from an eighth of the bytes.
#
#     w . x  <  rough . x  +  Z * sqrt(sum of step^2 * x^2 / 12)        but for one row in e^(Z^2 / 2)
#
# To decode a token, a model reads every weight once, so bytes are time (lesson 12). A good part of them belongs to
# the head, which says of each token in the vocabulary how likely it is; and greedy decoding asks for one.
# Read beside this: backends/sketch.py, tinyqwen/shortlist.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

import backends
from backends.sketch import LEVELS, Z, sketch_of
from tinyqwen.blocks.linear import linear
from tinyqwen.sampling import Sampling
from tinyqwen.shortlist import sample_shortlisted, shortlist
from tinyqwen.sizes import SIZES
from tinyqwen.weights import count_parameters
from walkthrough.pictures import bars, table

backend, rng = backends.get("numpy"), np.random.default_rng(0)

# %% [markdown]
# ## The head's share
# The smaller the model, the larger the part of a token's bytes that only say which token it is.

# %%
rows = []
for name in ("0.5B", "1.5B", "7B", "72B"):
    config = SIZES[name].config()
    head = config.vocab_size * config.hidden_size
    rows.append((name, f"{head / 1e6:.0f}", f"{head / (count_parameters(config)['non_embedding'] + head):.0%}"))
table("model  head, million weights  of those that a token reads", *rows)

# %% [markdown]
# ## A rough copy
# Round each weight to one of 16 steps. A sum of many rounded numbers is near the true one, as some errors are up
# and others down. Mostly. Here is a row whose weights all lie just below half a step, and a token that adds them up.

# %%
columns = 896
ordinary_I = rng.standard_normal(columns)
stubborn_I = np.full(columns, 0.499 / LEVELS)
stubborn_I[::32] = 1  # which makes the step 1 / 7


def off(weight_I, x_I, dither_I):
    """By how many steps the sum is off. The dither is added before rounding, and taken away afterwards."""
    step = np.abs(weight_I).max() / LEVELS
    rough_I = (np.rint(weight_I / step + dither_I) - dither_I) * step
    return float(rough_I @ x_I - weight_I @ x_I) / step


ones_I, no_dither_I = np.ones(columns), np.zeros(columns)
table("row  off by, in steps", *((name, f"{off(row, ones_I, no_dither_I):.0f}") for name, row in
                                 (("ordinary", ordinary_I), ("stubborn", stubborn_I))))  # fmt: skip

# %% [markdown]
# Nobody has promised that a model's rows are ordinary. So this copy says nothing certain.
#
# ## Dither
# Move each column by a random part of a step before it is rounded, and back afterwards. Now it is chance which way
# a weight is rounded, whatever the weight is: each error is spread evenly over one step, and independent of all
# others. A number spread evenly over a step has the variance step^2 / 12, and variances of independent numbers add
# up. (Sound and pictures are dithered for the same reason: what would be a pattern becomes a faint noise.)

# %%
expected = np.sqrt(columns / 12)  # in steps, for a token of ones
for name, row in (("ordinary", ordinary_I), ("stubborn", stubborn_I)):
    errors = np.array([off(row, ones_I, rng.random(columns) - 0.5) for _ in range(2000)])
    print(f"{name}: off by {errors.std():.1f} steps (standard deviation); the sum of variances says {expected:.1f}")
    counts = np.histogram(errors / expected, np.arange(-3.5, 4))[0]
    bars({f"{deviation:+d}": count for deviation, count in zip(range(-3, 4), counts)}, form="d", width=30)

# %% [markdown]
# ## How far off at most?
# Not more than Z standard deviations, but for a chance of less than e^(-Z^2 / 2), and there are 151,936 rows.

# %%
table("Z  one row of all exceeds it", *((z, f"{min(1, 151936 * np.exp(-z * z / 2)):.0e}") for z in (3, 5, 7, 9)))
print("Z is", Z)

# %% [markdown]
# ## The shortlist
# A head of 20,000 tokens and one hidden state. Each logit has a bound. Compute the logits of the few tokens with the
# highest bounds: the largest of them is the *floor*. Whoever's bound is below the floor cannot win. (The program
# bounds tiles of 16 tokens, because 16 rows lie side by side in its memory.)

# %%
V, D = 20_000, 256
head_VD = rng.standard_normal((V, D), np.float32)
sketch = sketch_of(head_VD)


def left(x_1D, k):
    """How many tokens are on the shortlist."""
    kept = dict(k=k, at_first=20, penalty=1.0, vocabulary=V)
    return len(shortlist(backend, x_1D, head_VD, sketch, np.array([], int), **kept)[0])


unsure_1D = rng.standard_normal((1, D), np.float32)  # no token stands out
sure_1D = unsure_1D + 0.5 * head_VD[[1234]]  # one does
counts = [(k, left(unsure_1D, k), left(sure_1D, k)) for k in (1, 5, 20)]
table("k  on the shortlist, unsure  sure of one", *counts)

# %% [markdown]
# ## The same token
# What is computed of the shortlist are the logits themselves. So the choice is what all logits would have chosen.

# %%
same = 0
for _ in range(100):
    x_1D = rng.standard_normal((1, D), np.float32)
    settings = dict(sampling=Sampling(), uniform=0.0, vocabulary=V)
    chosen = sample_shortlisted(backend, x_1D, head_VD, sketch, np.array([], int), **settings)
    same += chosen == linear(backend, x_1D, head_VD).argmax()
print("the same token:", same, "of 100")

# %% [markdown]
# ## What it saves
# The 0.5B, MB that a token reads: in bfloat16 as it is packed (lesson 25), int8 and int4, whose head is int8.

# %%
config = SIZES["0.5B"].config()
head, body = config.vocab_size * config.hidden_size / 1e6, count_parameters(config)["non_embedding"] / 1e6
sketched = head * 4.5 / 8
found = {}
for name, body_bits, head_bits in (("bf16", 12, 12), ("int8", 8.5, 8.5), ("int4", 4.5, 8.5)):
    whole = (body * body_bits + head * head_bits) / 8
    found[name] = whole / (whole - head * head_bits / 8 + sketched)
    print(f"{name}: {whole:.0f} MB, {whole / found[name]:.0f} with a sketch: {found[name]:.2f} times the speed at best")

# %% What we know now
assert (
    abs(off(stubborn_I, ones_I, no_dither_I)) > 40 * expected > abs(off(stubborn_I, ones_I, rng.random(columns) - 0.5))
)
assert all(few < V / 20 for _, few, _ in counts) and counts[0][2] <= counts[0][1]
assert same == 100 and found["int4"] > 1.2

# %%
# Exercise 1. A row of 900 weights, each rounded in steps of 0.1 with dither, and a token of ones. What is the standard
# deviation of the sum's error?
deviation = ...
# assert abs(deviation - 0.1 * np.sqrt(900 / 12)) < 0.001

# %%
# Exercise 2. A sketch in 3 bits has half as many levels, so steps twice as wide. By what factor are bounds farther from
# the logits?
factor = ...
# assert factor == 2

# %%
# Exercise 3. Someone samples at temperature 1 from *all* tokens. Which share of the head must be read then?
share = ...
# assert share == 1
