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
from backends.sketch import LEVELS, sketch_of
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
for name, config in ((name, SIZES[name].config()) for name in ("0.5B", "1.5B", "7B", "72B")):
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
# Nobody has promised that a model's rows are ordinary.
# ## Dither
# Move each column by a random part of a step before it is rounded, and back afterwards. Now chance decides which way
# a weight is rounded, whatever it is: each error is spread evenly over one step, which has the variance step^2 / 12,
# and independent of all others, so that variances add up. (Sound is dithered, too: a pattern becomes faint noise.)

# %%
expected = np.sqrt(columns / 12)  # in steps, for a token of ones
for name, row in (("ordinary", ordinary_I), ("stubborn", stubborn_I)):
    errors = np.array([off(row, ones_I, rng.random(columns) - 0.5) for _ in range(2000)])
    print(f"{name}: off by {errors.std():.1f} steps (standard deviation); the sum of variances says {expected:.1f}")
    counts = np.histogram(errors / expected, np.arange(-3.5, 4))[0]
    bars({f"{deviation:+d}": count for deviation, count in zip(range(-3, 4), counts)}, form="d", width=30)

# %% [markdown]
# ## How far off at most?
# Not more than Z standard deviations, but for a chance of less than e^(-Z^2 / 2), and there are 151,936 rows. So Z
# is 9 here.

# %%
table("Z  one row of all exceeds it", *((z, f"{min(1, 151936 * np.exp(-z * z / 2)):.0e}") for z in (3, 5, 7, 9)))

# %% [markdown]
# ## The shortlist
# A head of 20,000 tokens and one hidden state. Each logit has a bound. Compute the logits of the few tokens with the
# highest bounds: the largest of them is the *floor*. Whoever's bound is below the floor cannot win. (The program
# bounds tiles of 16 tokens, because 16 rows lie side by side in its memory: so one winner brings 15 others.) To be
# among the 20 likeliest is easier than to be the first, so that more must be looked at.

# %%
V, D = 20_000, 256
head_VD = rng.standard_normal((V, D), np.float32)
sketch = sketch_of(head_VD)


def left(x_1D, k):
    """How many tokens are on the shortlist."""
    nobody, kept = np.array([], int), dict(k=k, at_first=20, penalty=1.0, vocabulary=V)
    return len(shortlist(backend, x_1D, head_VD, sketch, nobody, **kept)[0])


unsure_1D = rng.standard_normal((1, D), np.float32)  # no token stands out
sure_1D = unsure_1D + 0.5 * head_VD[[1234]]  # one does
counts = [(k, left(unsure_1D, k), left(sure_1D, k)) for k in (1, 5, 20)]
table("k  on the shortlist, unsure  sure of one", *counts)

# %% The same token: what is computed of the shortlist are the logits themselves
same, settings = 0, dict(sampling=Sampling(), uniform=0.0, vocabulary=V)
for x_D in rng.standard_normal((100, D), np.float32):
    chosen = sample_shortlisted(backend, x_D[None], head_VD, sketch, np.array([], int), **settings)
    same += chosen == linear(backend, x_D[None], head_VD).argmax()
print("the same token:", same, "of 100")

# %% [markdown]
# ## What it saves
# The 0.5B in int4, whose head is int8: MB that a token reads. A sketch has 4.5 bits a weight.

# %%
config = SIZES["0.5B"].config()
head, body = config.vocab_size * config.hidden_size / 8e6, count_parameters(config)["non_embedding"] / 8e6
whole, sketched = body * 4.5 + head * 8.5, body * 4.5 + head * 4.5
print(f"{whole:.0f} MB, {sketched:.0f} with a sketch: {whole / sketched:.2f} times the speed at best")

# %% What we know now
assert (
    abs(off(stubborn_I, ones_I, no_dither_I)) > 40 * expected > abs(off(stubborn_I, ones_I, rng.random(columns) - 0.5))
)
assert counts[0][1] < V / 20 and all(sure < unsure for _, unsure, sure in counts)
assert same == 100 and whole / sketched > 1.2

# %%
# Exercise 1. 900 weights, rounded in steps of 0.1 with dither, times ones: the standard deviation of the sum's error?
deviation = ...
# assert abs(deviation - 0.1 * np.sqrt(900 / 12)) < 0.001

# %%
# Exercise 2. A sketch in 3 bits has steps twice as wide. By what factor are bounds farther from the logits?
factor = ...
# assert factor == 2

# %%
# Exercise 3. Someone samples at temperature 1 from *all* tokens. Which share of the head must be read then?
share = ...
# assert share == 1
