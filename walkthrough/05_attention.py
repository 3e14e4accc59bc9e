# %% [markdown]
# # 5. Attention: look back, and take what you need
# Goal: compute one head by hand, hide the future, and let several query heads share one key/value head.
#
#     scores[t, s] = q[t] . k[s] / sqrt(K)           for each token t, of each token s that it may see
#     weights[t]   = exp(scores[t]) / their sum       softmax: positive, and 1 in all
#     out[t]       = sum over s of weights[t, s] * v[s]
#
# It is the only place in the model where tokens meet. Read beside this:
# tinyqwen/blocks/attention.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.blocks.attention import attend, scores, softmax, visible, visible_pairs
from tinyqwen.sizes import SIZES
from walkthrough.pictures import heat, table

backend = get("numpy")
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## One head, by hand
# Three tokens, vectors of one number (K = 1, so sqrt(K) = 1). All queries are 1. The keys are log
# 1, log 2, log 5, so that exp(score) is 1, 2, 5 and no calculator is needed. The values are 24, 12
# and 8.
#
#     token 0 sees 0          weights 1                  out 24
#     token 1 sees 0, 1       weights 1/3 2/3            out  8 + 8     = 16
#     token 2 sees 0, 1, 2    weights 1/8 2/8 5/8        out  3 + 3 + 5 = 11


# %%
def one_head(exp_of_keys, values):
    """The model's own block, with queries of 1 and these numbers."""
    q_THK = np.ones((len(values), 1, 1), np.float32)
    k_GSK, v_GSK = np.float32([np.log(exp_of_keys), values])[:, None, :, None]
    return attend(backend, q_THK, k_GSK, v_GSK)[:, 0, 0]


print("by the model's block:", one_head([1, 2, 5], [24, 12, 8]))
assert np.allclose(one_head([1, 2, 5], [24, 12, 8]), [24, 16, 11])

# %% [markdown]
# ## The mask
# A token must not see what comes after it, or the model could learn to copy the answer. Scores of
# the future become minus infinity, and exp of that is 0. With T new tokens behind S - T old ones,
# the corner is at the *lower right*: the last row is the newest token, which sees all. (Qwen2 knows
# a window, too: a token then sees only the last few.)

# %%
print("3 tokens, nothing before:       ", *visible(np, 3, 3).astype(int))
print("2 new tokens behind 3 old ones: ", *visible(np, 2, 5).astype(int))
print("1 new token (decode):           ", *visible(np, 1, 5).astype(int))
print("2 behind 3, window of 3:        ", *visible(np, 2, 5, window=3).astype(int))

# %% [markdown]
# ## A picture
# Let each word be its own direction: the key of "cat" says "I am cat", its query looks for "cat".
# Rows look, columns are looked at; the darker, the more weight. The triangle is the mask. A word
# that was there before finds itself.

# %%
words = "the cat sat on the mat and the cat slept".split()
one_hot = np.float32([[a == b for b in sorted(set(words))] for a in words])
q_GRTK, k_1SK = 8 * one_hot[None, None], one_hot[None]
weights_GRTS = softmax(backend, scores(backend, q_GRTK, k_1SK))
heat(weights_GRTS[0, 0], words, words)
print("the second 'cat' looks at:", {f"{words[s]} {s}": round(float(weights_GRTS[0, 0, 8, s]), 2) for s in (1, 2, 8)})

# %% [markdown]
# ## Grouped-query attention
# Many heads look for many things at once: H query heads. Keys and values are what must be
# remembered for every token, so Qwen2 has fewer of those: G. R = H / G query heads share one; query
# head h uses KV head h // R. Neighbours share. The result is what H full heads would give, had each
# group of R equal keys and values.

# %%
rng = np.random.default_rng(1)
H, G, K, T = 6, 2, 4, 5
q_THK = rng.standard_normal((T, H, K), dtype=np.float32)
k_GTK, v_GTK = rng.standard_normal((2, G, T, K), dtype=np.float32)
grouped_THK = attend(backend, q_THK, k_GTK, v_GTK)

owner_H = np.arange(H) // (H // G)  # 0 0 0 1 1 1
full_THK = attend(backend, q_THK, k_GTK[owner_H], v_GTK[owner_H])
print("query heads 0 to 5 use KV heads", owner_H, "- the same as six full heads:", np.allclose(grouped_THK, full_THK))
wrong_H = np.arange(H) % G  # 0 1 0 1 0 1, the classic mistake
wrong_THK = attend(backend, q_THK, k_GTK[wrong_H], v_GTK[wrong_H])
print("with KV heads                  ", wrong_H, "- the same as six full heads:", np.allclose(grouped_THK, wrong_THK))

configs = {name: SIZES[name].config() for name in ("0.5B", "1.5B", "7B", "72B")}
rows = [(name, config.letters["H"], config.letters["G"], config.letters["R"]) for name, config in configs.items()]
table("Qwen2  query heads H  KV heads G  cache smaller by R", *rows)

# %% [markdown]
# ## Particular to Qwen2
# q, k and v have biases (Llama's do not); o_proj has none. A bias on k, turned by RoPE, is a liking
# for certain distances whatever word stands there. Qwen2's keys are so large that float16
# overflows: scores are float32. One more guard: softmax first subtracts the largest score. The
# quotient stays the same, and exp cannot overflow.

# %%
print("softmax of 1000, 1000, 998:", softmax(backend, np.float32([1000, 1000, 998])))

# %% What we know now
assert np.allclose(weights_GRTS.sum(axis=-1), 1)  # every row of weights sums to one
assert np.all(weights_GRTS[0, 0][~visible(np, 10, 10)] == 0)  # nobody looks ahead
assert np.array_equal(
    one_head([1, 2, 5], [24, 12, 8])[:2], one_head([1, 2, 9], [24, 12, 99])[:2]
)  # same past, same out
assert np.allclose(grouped_THK, full_THK) and not np.allclose(grouped_THK, wrong_THK)
assert visible_pairs(3, 3, None) == visible(np, 3, 3).sum() == 6

# %%
# Exercise 1. A fourth token comes to the head by hand: key log 8, value 0, query 1. What is its
# out?
out = ...
# assert np.isclose(out, one_head([1, 2, 5, 8], [24, 12, 8, 0])[3])

# %%
# Exercise 2. Which KV head does query head 9 of Qwen2-0.5B use? (Below, each KV head says its own
# number.)
heard_THK = attend(backend, np.ones((1, 14, 1)), np.zeros((2, 1, 1)), np.array([[[0.0]], [[1.0]]]))
head = ...
# assert head == heard_THK[0, 9, 0]

# %%
# Exercise 3. How many pairs of query and key does a prompt of 100 tokens need? And 4 new tokens
# behind 96 old ones?
prompt, four_more = ..., ...
# assert (prompt, four_more) == (visible(np, 100, 100).sum(), visible(np, 4, 100).sum())
