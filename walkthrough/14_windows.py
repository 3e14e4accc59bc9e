# %% [markdown]
# # 14. Windows: a layer that remembers W tokens and no more
# Goal: see what a sliding window hides, how far a stack of them reaches, and how a ring holds it in fixed memory.
#
#     token i sees keys j with   i - W < j <= i          W keys, itself included
#     position p lies in slot    p mod N                 N = W - 1 + the longest step
#
# Read beside this: tinyqwen/blocks/sliding_window.py, tinyqwen/kv_cache.py,
# tinyqwen/blocks/attention_parts.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

from dataclasses import replace

import numpy as np

from backends import get
from tinyqwen.blocks.attention import attend, visible
from tinyqwen.blocks.attention_parts import attention_part, merge_parts
from tinyqwen.config import FULL, SLIDING, Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree
from walkthrough.pictures import bars, heat, table

backend, W = get("numpy"), 4

# %% [markdown]
# ## The mask
# A band instead of a triangle: each token sees itself and the W - 1 before it.

# %%
heat(visible(np, 10, 10, window=W).astype(float), [f"{i}" for i in range(10)], [f"{j}" for j in range(10)])

# %% [markdown]
# ## Layer on layer
# Is all else lost? Token 9 sees token 6, which has seen token 3: what is known travels W - 1 tokens
# further with each layer. Change token 0, and look which tokens' results change.


# %%
def model(layers, window=W):
    config = Config(48, 96, layers, 6, 60, sliding_window=window, layer_types=(SLIDING,) * layers)
    return config, tree(random_weights(config, seed=4, scale=0.2))


def reach(layers, window=W, tokens=40):
    """The last token whose logits notice a change of token 0."""
    config, weights = model(layers, window)
    before_NV, after_NV = (
        forward(backend, config, weights, make_step([([first, *range(1, tokens)], None)], all_logits=True))
        for first in (50, 51)
    )
    return int(np.flatnonzero(np.abs(before_NV - after_NV).max(axis=1))[-1])


bars({f"{layers} layers": reach(layers) for layers in (1, 2, 3, 4)}, form="d", width=24)

# %% [markdown]
# ## The ring
# The ring has room for the W - 1 tokens that the next one will see, and for the step's own. Steps of
# up to 2 tokens: N = 4 - 1 + 2 = 5 slots. Below, a line per step: which position lies in each slot,
# the step's own in brackets, what nobody can see as a dot.

# %%
slots = W - 1 + 2
for start, stop in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 8), (8, 10)):
    cells = ["  . "] * slots
    for p in range(max(0, start - (W - 1)), stop):
        cells[p % slots] = f" [{p}]" if p >= start else f"  {p} "
    print(f"positions {start} to {stop - 1}: {''.join(cells)}")

# %% [markdown]
# A step writes over slots whose positions it cannot see, and over no others. So if it fails half-way
# (Ctrl-C), nothing is lost: the cache's length has not moved, and the step can be asked for again.
#
# ## Two stretches, one softmax
# What a step sees may begin near the end of the ring and go on at its start. Memory is not turned
# round for that: each stretch is a *part*, with its own softmax and the log of its sum, and parts
# merge exactly.

# %%
rng = np.random.default_rng(0)
q_THK, (k_GSK, v_GSK) = rng.standard_normal((1, 6, 8)), rng.standard_normal((2, 2, W, 8))
whole_THK = attend(backend, q_THK, k_GSK, v_GSK)
before = attention_part(backend, q_THK, k_GSK[:, :3], v_GSK[:, :3], past=3)  # three keys at the end of the ring
behind = attention_part(backend, q_THK, k_GSK[:, 3:], v_GSK[:, 3:], past=0)  # and one at its start: its own
outs, lses = zip(before, behind)
share = np.exp(lses) / np.exp(lses).sum(axis=0)
print("shares of the two parts, head 0:", share[:, 0, 0].round(3))
same = np.allclose(merge_parts(backend, outs, lses), whole_THK, atol=1e-12)
print("merged, the same as one softmax:", same)

# %% [markdown]
# ## What it saves
# The cache of Qwen2-7B in bfloat16, had half of its layers a window of 4,096.

# %%
full = SIZES["7B"].config()
half = replace(full, sliding_window=4096, layer_types=(FULL,) * 14 + (SLIDING,) * 14)
size = lambda config, n: KVCache(backend, config, "bf16").bytes_at(n, step=256)  # noqa: E731
rows = [(f"{n:,}", *(f"{size(each, n) / 2**30:.2f} GiB" for each in (full, half))) for n in (4096, 32768, 131072)]
table("tokens  all full  half sliding", *rows)

# %% [markdown]
# ## Forgotten is forgotten
# Setting `length` back was free in lesson 7. A ring goes back by its longest step at most, or to 0;
# anything else is an error, and whoever asked reads the text again.

# %%
config, weights = model(2)
cache = KVCache(backend, config)
for start in range(0, 12, 2):
    forward(backend, config, weights, make_step([([start, start + 1], cache)]))
print("12 tokens read; can go back to:", [n for n in range(13) if cache.keeps(n)])

# %% [markdown]
# ## Particular to Qwen2
# Its configs name a window (`sliding_window`: 32768 or 131072) and switch it off
# (`use_sliding_window`: false). Were it on, the *first* `max_window_layers` layers would be full and
# the rest slide. Positions stay those of the whole text; a window needs no other RoPE.

# %% What we know now
assert visible(np, 10, 10, window=W).sum(axis=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
assert [reach(layers) for layers in (1, 2, 3, 4)] == [3, 6, 9, 12]
assert cache.layers[0].shape[2] == slots == 5 and full.sliding_window is None  # as in all published models
assert same and np.allclose(share.sum(axis=0), 1)

# %%
# Exercise 1. How far does a stack of 5 layers with a window of 6 reach?
far = ...
# assert far == reach(5, window=6)

# %%
# Exercise 2. Our ring has 5 slots. In which one lies position 11, the newest?
slot = ...
# assert [slot] == [n for n in range(5) if np.shares_memory(cache.layers[0][:, :, n], *cache.stretches(0, 11, 12))]

# %%
# Exercise 3. Window 4096, steps of 256 tokens: how many tokens long is the text when the sliding half of
# the layers is full, so that a further token takes half the room of the one before?
growth = lambda n: size(half, n + 1) - size(half, n)  # noqa: E731
tokens = ...
# assert growth(tokens - 1) == 2 * growth(tokens)
