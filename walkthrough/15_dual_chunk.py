# %% [markdown]
# # 15. Dual Chunk Attention: long texts at distances that the model knows
# Goal: see the matrix of distances in its three colours, why none is ever too large, and that it is one softmax.
#
#     chunk of i    i div L                              L = chunk_size - local_size
#     key           j mod L                              turned once, and kept so
#     query         i mod L                              towards keys of its own chunk        (intra)
#                   min(i mod L + L, chunk_size)         towards those of the chunk before    (succ)
#                   min(2 L - 1, chunk_size)             towards all earlier ones             (inter)
#
# No training, no new weights, no other frequencies. Read beside this:
# tinyqwen/blocks/dual_chunk.py, tinyqwen/blocks/attention_parts.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import Backend
from tinyqwen.blocks.dual_chunk import dual_chunk_attention, dual_chunk_tables, sharpen, stretches, ways
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.config import DualChunk
from tinyqwen.config_json import parse_config
from tinyqwen.errors import ModelFilesError
from tinyqwen.step import Span
from walkthrough.pictures import coloured, coloured_svg, table

backend, chunk = Backend(dtype=np.float64), DualChunk(chunk_size=12, local_size=4)  # L = 8

# %% [markdown]
# ## The trouble
# RoPE tells a query how far away each key is. A model that was trained on texts of 12 tokens has met
# the distances 0 to 11 or so. In a text of 24 tokens it meets 23, an angle that never meant anything.
#
# ## Three places at once
# So a query stands in up to three places at once, one for each kind of chunk that it looks at. The
# keys stand still: they were turned by their place in their chunk, when they were cached.

# %%
places = ways(np.arange(24), chunk)
show = (0, 7, 8, 12, 13, 15, 16, 20, 23)
table("token  " + "  ".join(map(str, show)), *(
    (name, *(int(place[i]) for i in show)) for name, place in zip(("key, intra", "succ", "inter"), places)
))  # fmt: skip

# %% [markdown]
# ## The matrix of distances
# Row i looks at column j: query's place less key's. Unmarked: intra; ' succ; " inter. (Or colours.)


# %%
def distances(total):
    """How far away each key looks to each query, and in which of the three ways it is met."""
    found, kinds = np.zeros((total, total), int), np.zeros((total, total), int)
    places = ways(np.arange(total), chunk)
    for i in range(total):
        for way, (start, stop) in enumerate(stretches(i, i + 1, chunk)):
            found[i, start:stop] = places[way][i] - places[0][start:stop]
            kinds[i, start:stop] = way
    return found, kinds


matrix, kinds = distances(24)
coloured(matrix, kinds)
picture = coloured_svg(matrix, kinds, ("own chunk", "the one before", "earlier"))  # walkthrough/dual_chunk.svg

# %% [markdown]
# ## Why no distance is too large, and what is still true
# A query stands at most at chunk_size, a key at 0 or more: no distance beyond chunk_size. Choose it
# as the length of the training, and nothing is new. Near tokens keep their true distance, also
# across the edge of a chunk, up to local_size: words and phrases stay whole. Beyond it, a key says
# "far away", and not how far. A text of up to chunk_size tokens is as without chunks.

# %%
i, j = np.tril_indices(24)
wrong = (matrix[i, j] != i - j).reshape(-1)
rows = []
for low, high in ((0, 4), (5, 8), (9, 12), (13, 23)):
    these = (i - j >= low) & (i - j <= high)
    shown = matrix[i, j][these]
    rows.append((f"{low} to {high}", f"{shown.min()} to {shown.max()}", f"{1 - wrong[these].mean():.0%}"))
table("true distance  looks like  exact", *rows)

# %% [markdown]
# ## It is one softmax
# Each way is attention to one stretch of the keys (a part, lesson 14), and parts merge. Is that what
# turning each query by each distance of the matrix gives, in one softmax? With 7 query heads to a KV
# head, as in Qwen2-0.5B:

# %%
rng = np.random.default_rng(0)
T, H, K, theta = 24, 7, 8, 1e4
q_THK, k_THK, v_THK = rng.standard_normal((3, T, H, K))
k_T1K, v_T1K = k_THK[:, :1], v_THK[:, :1]

tables = dual_chunk_tables(backend, np.arange(T), np.full(T, T), head_dim=K, theta=theta, chunk=chunk)
queries = [rope(backend, q_THK, *each) for each in tables]  # three times
keys = [rope(backend, k_T1K, *tables[0]).swapaxes(0, 1)]  # once
parts_THK = dual_chunk_attention(backend, queries, keys, [v_T1K.swapaxes(0, 1)], spans=[Span(0, T, None)], chunk=chunk)

slow_THK = np.zeros((T, H, K))
for t in range(T):
    turned_SHK = rope(backend, np.broadcast_to(q_THK[t], (t + 1, H, K)), *rope_tables(
        backend, matrix[t, : t + 1], head_dim=K, theta=theta))  # fmt: skip
    weight_SH = np.exp((turned_SHK * k_T1K[: t + 1]).sum(axis=2) / np.sqrt(K))
    slow_THK[t] = (weight_SH / weight_SH.sum(axis=0)).T @ v_T1K[: t + 1, 0]
print("largest difference below 1e-12:", bool(np.abs(parts_THK - slow_THK).max() < 1e-12))

# %% [markdown]
# ## Particular to Qwen2
# Its report reaches 131,072 tokens with this and YaRN: of YaRN only the temperature (lesson 13),
# growing with the text: max(1, 0.1 ln(n / trained) + 1). The frequencies must stay as they are, or
# the distances would not look as in training. So `rope_scaling` beside chunks is refused.
# `--dca 32768,1024,32768` runs any Qwen2 so; no published config of Qwen2 has the key, those of the
# million-token Qwen2.5 do.

# %%
hot_TKh, _ = sharpen(backend, np.ones((3, 1)), np.ones((3, 1)), np.array([8192, 65536, 131072]), trained=32768)
print("q and k of a text of 8k, 64k and 128k tokens are multiplied by", hot_TKh[:, 0].round(3))
raw = dict(model_type="qwen2", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=50)
raw |= dict(num_attention_heads=4, num_key_value_heads=4, rope_scaling={"type": "yarn", "factor": 4.0})
try:
    parse_config(raw | {"dual_chunk_attention_config": {"chunk_size": 1024, "local_size": 64}})
except ModelFilesError as error:
    print(str(error).split("; ")[0])

# %% What we know now
assert matrix.max() == 12 and matrix.min() == 0
assert matrix[20, :21].tolist() == [12, 11, 10, 9, 8, 7, 6, 5, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
assert not wrong[i - j <= chunk.local_size].any()
assert np.allclose(parts_THK, slow_THK, atol=1e-12)
assert not wrong[i <= chunk.chunk_size].any()  # a text of up to chunk_size tokens does not notice

# %%
# Exercise 1. A text of 40 tokens. How far away does key 3 look to token 30?
far = ...
# assert far == distances(40)[0][30, 3]

# %%
# Exercise 2. Qwen2 with --dca 32768,1024. How many keys does token 100,000 meet as intra, succ and inter?
intra, succ, inter = ..., ..., ...
# assert [intra, succ, inter] == [b - a for a, b in stretches(100_000, 100_001, DualChunk(32768, 1024))]

# %%
# Exercise 3. Which is the nearest key that does not look as far away as it is, from token 15? (Its true distance.)
nearest = ...
# assert nearest == min(15 - j for j in range(16) if matrix[15, j] != 15 - j)
