# %% [markdown]
# # 21. Who reads which bytes
# Goal: see from addresses alone why one kernel reads at full speed and another at a sixteenth of it.
#
# A GPU reads memory in *sectors* of 32 bytes. The 32 threads of a *warp* ask together; what comes is every
# sector that one of them needs, whole. So not who computes what decides how fast a kernel decodes, but who
# reads which bytes. Nothing is run here: addresses are arithmetic. The kernels are those beside
# backends/cuda/linear.py and backends/cuda/attention.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import shape_only
from backends.quantised import quantise
from tinyqwen.blocks.linear import linear
from walkthrough.pictures import table

lane = np.arange(32)  # the threads of a warp


def read(address, size):
    """What one load of a warp brings: bytes that were asked for, bytes that come, sectors."""
    byte = (address[:, None] + np.arange(size)).ravel()
    sectors = len(np.unique(byte // 32))
    return len(np.unique(byte)), 32 * sectors, sectors


# %% [markdown]
# ## A row of weights: whose is it?
# `q_proj` of the 0.5B in bfloat16: rows of 896 weights, 1792 bytes. The plain thought is a thread for each
# row, as each output is a sum of its own. Then neighbours are 1792 bytes apart. Or a warp takes a row.

# %%
ways = {
    "a thread a row, 2 bytes": (lane * 1792, 2),
    "a warp a row, 2 bytes": (lane * 2, 2),
    "a warp a row, 16 bytes": (lane * 16, 16),
}
loads = {name: read(*way) for name, way in ways.items()}
table("who reads  asked  come  useful", *((n, a, b, f"{a / b:.0%}") for n, (a, b, _) in loads.items()))

# %% [markdown]
# The second and the third bring nothing in vain. But the third asks for 512 bytes with one instruction, and
# that counts too, as memory answers after some 700 ns. To receive 4.3 TB a second (an H200), so much must be
# on its way all the time:

# %%
on_the_way = 4.3e12 * 700e-9
threads = 132 * 2048  # multiprocessors, and threads that each can hold
print(f"{on_the_way / 1e6:.1f} MB on their way: {on_the_way / threads:.0f} bytes for each thread that there can be")
print("so 2 bytes a thread are never enough, and 16 are, if nearly all threads are there; or more loads each")

# %% [markdown]
# ## Fewer bits, and the same sectors
# int8 and int4 (backends/quantised.py) lie with 16 rows side by side: 4 bytes of row 0, 4 of row 1, ... A
# warp reads 512 bytes in a piece, 16 a thread. Whose are they? Let every weight be the number of its row,
# and look what a thread finds.

# %%
row_OI = np.repeat(np.arange(16, dtype=np.float32), 64).reshape(16, 64)
stored = quantise(row_OI, 8).values.reshape(-1)[:512].reshape(32, 16)  # a warp's bytes, by thread
scale = quantise(row_OI, 8).scales.astype(np.float32)[0, 0]
found = [[round(float((b - 128.0) * scale[4 * (n % 4) + i // 4])) for i, b in enumerate(stored[n])] for n in lane]
for n in (0, 1, 4):
    print(f"thread {n} holds rows {sorted(set(found[n]))}, 4 columns of each")
print("asked, come, sectors:", read(lane * 16, 16))

# %% [markdown]
# Threads 0, 4, 8, ... 28 have the same four rows, other columns: each adds up its own, and in the end three
# exchanges among threads (4, 8 and 16 apart) make one sum of eight. No byte was read for nothing.
#
# ## The cache, once or seven times
# In the 0.5B 7 query heads share a KV head. If each head's block read K and V by itself, that would be 7
# times the bytes. A block therefore takes a KV head, and holds all 7 queries in registers.

# %%
S, layers, G, R, K = 4096, 24, 2, 7, 64
once = layers * 2 * G * K * 2 * S  # keys and values, 2 bytes each
print(f"{S} tokens of context: {once / 1e6:.0f} MB read for each new one, not {R * once / 1e6:.0f}")
blocks = {splits: G * splits for splits in (1, 64)}
print(f"but 2 KV heads are 2 blocks for 132 multiprocessors; cut into 64 stretches of keys, {blocks[64]}")

# %% [markdown]
# ## The budget of a token
# All that must be read to decode one token with the 0.5B, and the time it takes at 4.3 TB a second:

# %%
D, F, V = 896, 4864, 151936
shapes = {"q, k, v": ((14 + 2 * G) * K, D), "o": (D, D), "gate, up": (2 * F, D), "down": (D, F)}
cost = {name: linear.cost_of(shape_only((1, s[1])), shape_only(s, np.float16)) for name, s in shapes.items()}
megabytes = {name: 2 * rows * columns / 1e6 for name, (rows, columns) in shapes.items()}
table("piece  MB  us", *((n, f"{mb:.2f}", f"{mb / 4.3:.2f}") for n, mb in megabytes.items()))
total = layers * sum(megabytes.values()) + 2 * V * D / 1e6
print(f"24 layers and the head: {total:.0f} MB, {total / 4.3:.0f} us, so at most {4.3e6 / total:.0f} tokens a second")
launches = {"steps": 14, "fused": 5}
idle = {name: layers * n * 1.3 for name, n in launches.items()}  # us, if each launch costs 1.3 us even in a graph
print({name: f"{us:.0f} us between launches" for name, us in idle.items()})

# %% [markdown]
# That is why backends/cuda/decoder_layer.py makes five launches of fourteen: the bytes are the same, but the
# pauses between them were longer than the reading.

# %% What we know now
assert [round(a / b, 2) for a, b, _ in loads.values()] == [0.06, 1, 1]
assert 10 < on_the_way / threads < 16
assert set(found[0]) == {0, 1, 2, 3} and set(found[1]) == {4, 5, 6, 7} and found[4] == found[0]
assert 985 < total < 990 and idle["steps"] > total / 4.3 > idle["fused"]
assert all(c.read - 4 * shapes[n][1] == round(megabytes[n] * 1e6) for n, c in cost.items())  # less the token's vector

# %%
# Exercise 1. Every thread of a warp reads 4 bytes, the neighbour's are 8 bytes further on. What share of what
# comes is useful?
useful = ...
# assert useful == read(lane * 8, 4)[0] / read(lane * 8, 4)[1]

# %%
# Exercise 2. In the 7B, 28 query heads share 4 KV heads of 128 numbers, in 28 layers. How many bytes of a
# bfloat16 cache does a new token read, at 1000 tokens of context?
cache_bytes = ...
# assert cache_bytes == 28 * read(np.arange(1000) * 2048, 2048)[0]

# %%
# Exercise 3. A GPU reads 4 TB a second and answers after 500 ns. It has 64 multiprocessors of 1024 threads.
# How many loads of 16 bytes must each thread have on its way, at least?
loads_each = ...
# assert (loads_each - 1) * 16 * 64 * 1024 < 4e12 * 500e-9 <= loads_each * 16 * 64 * 1024
