# %% [markdown]
# # 7. The KV cache: never compute the past twice
# Goal: decode with and without a cache, count what it saves, what it costs, and say what "equal" means.
#
#     without    step n passes all n tokens through the model, to learn one thing about the last
#     with       step n passes 1 token, and looks at the n - 1 keys and values that it kept
#
# It works because attention is causal: nothing that comes later changes an earlier key or value.
# Read beside this: tinyqwen/kv_cache.py, tinyqwen/step.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import dataclasses

import numpy as np

from backends import Backend, Wrapper, get
from tinyqwen.config import Config
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree
from walkthrough.pictures import table

config = Config(
    hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=60,
)  # fmt: skip
weights, prompt = tree(random_weights(config, seed=4, scale=0.2)), [5, 17, 3, 42, 8]

# %% [markdown]
# ## The same tokens, less work
# Greedy decoding of eight tokens, twice. A wrapper in the door adds up the FLOPs of each step.


# %%
class Counting(Wrapper):
    """Adds up the FLOPs of the matrix products and of attention."""

    flops = 0

    def run(self, operation, arrays, settings, door=None):
        if operation.name in ("linear", "attention"):
            self.flops += operation.cost_of(*arrays, **settings).flops
        return super().run(operation, arrays, settings, door)


def decode(count, cache=None):
    """Greedy: the ids, and per step how many tokens passed and the FLOPs."""
    ids, steps = list(prompt), []
    for _ in range(count):
        counting = Counting(get("numpy"))
        fresh = ids[cache.length :] if cache else ids
        logits_NV = forward(counting, config, weights, make_step([(fresh, cache)]))
        steps.append((len(fresh), counting.flops))
        ids.append(int(logits_NV[0].argmax()))
    return ids[len(prompt) :], steps


plain_ids, plain = decode(8)
cached_ids, cached = decode(8, KVCache(get("numpy"), config))
print("without:", plain_ids)
print("with:   ", cached_ids)
rows = [(n, a[0], f"{a[1]:,}", b[0], f"{b[1]:,}") for n, (a, b) in enumerate(zip(plain, cached))]
table("step  tokens without  FLOPs without  tokens with  FLOPs with", *rows)

# %% [markdown]
# ## Equal? How equal?
# Compare the logits, not the words. In float32 they usually differ in the last digits: the products
# have other shapes, so they are summed in another order, and each sum is rounded. Is that noise, or
# a bug? Do it again in float64, which has 29 more bits. Noise shrinks by 2^29, some 500 million. A
# bug stays as large as it was, like this classic one: the new token's position is wrong by one.


# %%
def difference(dtype, shift=0):
    """The largest difference between the last logits of prompt + 1 without and with a cache."""
    backend = Backend(np, dtype=dtype)
    whole_NV = forward(backend, config, weights, make_step([([*prompt, 9], None)]))
    cache = KVCache(backend, config)
    forward(backend, config, weights, make_step([(prompt, cache)]))
    step = make_step([([9], cache)])
    step = dataclasses.replace(step, position_T=step.position_T + shift)
    return float(np.abs(forward(backend, config, weights, step) - whole_NV).max())


def size(number):
    """Words, because the digits of noise differ from machine to machine."""
    return "above 1e-3" if number > 1e-3 else "below 1e-4" if number > 1e-11 else "below 1e-11"


for name, shift in (("right", 0), ("position wrong by one", 1)):
    print(f"{name:22} float32: {size(difference(np.float32, shift)):12} float64: {size(difference(np.float64, shift))}")

# %% [markdown]
# ## What it costs
# A key and a value of K numbers for each KV head of each layer. Qwen2-0.5B: 2 * 24 * 2 * 64 = 6144.
# Particular to Qwen2: few KV heads (lesson 5), so it is R = H / G times less. In bfloat16:

# %%
rows = []
for name in ("0.5B", "1.5B", "7B", "72B"):
    per_token = 2 * SIZES[name].config().kv_values_per_token
    whole, R = 32768 * per_token, SIZES[name].config().letters["R"]
    rows.append((name, f"{per_token / 2**10:.0f} KiB", f"{whole / 2**30:.2f} GiB", f"{R * whole / 2**30:.2f} GiB"))
table("Qwen2  a token  32,768 tokens  if G were H", *rows)

# %% [markdown]
# ## Forgetting is free
# `length` says how much of the cache counts. Set it back, and what follows is forgotten: a chat
# that goes on from an earlier turn computes only what is new. (Keys are kept turned, for good.)

# %%
backend = get("numpy")
cache = KVCache(backend, config)
first_NV = forward(backend, config, weights, make_step([([*prompt, 9], cache)]))
cache.length = 3  # keep 5, 17, 3 and go on as before: 42, 8, 9
again_NV = forward(backend, config, weights, make_step([([42, 8, 9], cache)]))
print("forgot three, read three again:", "the same" if np.allclose(first_NV, again_NV, atol=1e-4) else "different")

# %% What we know now
assert plain_ids == cached_ids
assert [tokens for tokens, _ in plain] == [5, 6, 7, 8, 9, 10, 11, 12]  # without: all of them, each time
assert [tokens for tokens, _ in cached] == [5, 1, 1, 1, 1, 1, 1, 1]  # with: prefill, then decode
assert difference(np.float32) < 1e-4 and difference(np.float64) < 1e-11  # noise goes away
assert min(difference(np.float32, 1), difference(np.float64, 1)) > 1e-3  # a bug does not
assert np.allclose(first_NV, again_NV, atol=1e-4)

# %%
# Exercise 1. Our prompt of 5 and 20 new tokens: how many tokens pass through the model in all,
# without a cache and with one? (The last new token is never fed back.)
without, with_one = ..., ...
# assert [without, with_one] == [sum(n for n, _ in decode(20, c)[1]) for c in (None, KVCache(backend, config))]

# %%
# Exercise 2. How many tokens of Qwen2-72B (L 80, G 8, K 128) fit into 1 GiB, in bfloat16?
tokens = ...
# assert tokens == 2**30 // (2 * SIZES["72B"].config().kv_values_per_token)

# %%
# Exercise 3. A cache holds our six tokens. Which length makes it forget all but the first?
cache = KVCache(backend, config)
forward(backend, config, weights, make_step([([*prompt, 9], cache)]))
cache.length = ...
# assert np.allclose(forward(backend, config, weights, make_step([([17, 3, 42, 8, 9], cache)])), first_NV, atol=1e-4)
