# %% [markdown]
# # 4. RoPE: a position is an angle
# Goal: turn a vector by its position, see that attention then knows distances only, and meet the two traps.
#
#     angle[t, i] = position[t] * theta^(-2i / K)          i = 0 .. K/2 - 1
#     (a, b) -> (a cos - b sin, a sin + b cos)              for the pair a = x[i], b = x[i + K/2]
#
# Attention compares a query with a key by a dot product, which knows nothing of order: without
# positions, "dog bites man" is "man bites dog". Read beside this: tinyqwen/blocks/rope.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np
from ml_dtypes import bfloat16

from backends import get
from tinyqwen.blocks.rope import rope, rope_tables
from walkthrough.pictures import bars, table

backend = get("numpy")
np.set_printoptions(precision=3, suppress=True)


def turn(x_K, position, theta=1e6):
    """One head's vector at a position, turned by the model's own block."""
    cos_TKh, sin_TKh = rope_tables(backend, np.array([position]), head_dim=len(x_K), theta=theta)
    return rope(backend, np.float32(x_K)[None, None], cos_TKh, sin_TKh)[0, 0]


# %% [markdown]
# ## One pair, by hand
# With K = 2 there is one pair and one angle: the position itself, in radians. Turn (3, 4) by
# position 1:
#
#     cos 1 = 0.540   sin 1 = 0.841      (3 * 0.540 - 4 * 0.841,  3 * 0.841 + 4 * 0.540) = (-1.745, 4.686)
#
# Its length stays 5: turning loses nothing. And position 0 turns nothing.

# %%
for position in range(4):
    turned = turn([3, 4], position)
    print(f"position {position}: {turned}   length {np.linalg.norm(turned):.3f}")
assert np.allclose(turn([3, 4], 1), [-1.745, 4.686], atol=1e-3)

# %% [markdown]
# ## Distance only
# Turn a query by its position and a key by its own. Their dot product depends on the difference of
# the two angles: both may move on together as far as they like.

# %%
rng = np.random.default_rng(0)
q_K, k_K = rng.standard_normal((2, 8), dtype=np.float32)
for ahead in (0, 100, 1000):
    scores = [turn(q_K, 5 + ahead) @ turn(k_K, at + ahead) for at in (5, 4, 2)]
    print(f"query at {5 + ahead:4}: score of the key 0, 1 and 3 tokens before: ", np.array(scores).round(2))

# %% [markdown]
# ## Fast pairs and slow pairs
# Each pair is the hand of a clock, and each clock runs at another speed. Fast hands tell neighbours
# apart, slow hands tell paragraphs apart. Particular to Qwen2: theta = 1,000,000 (Llama 2: 10,000),
# so the slowest of its 32 hands goes round once in 4 million tokens, and no two positions of a long
# text look alike.

# %%
around = {i: 2 * np.pi * 1e6 ** (2 * i / 64) for i in (0, 1, 8, 16, 24, 31)}
table("pair i  tokens for one turn", *((i, f"{tokens:,.0f}") for i, tokens in around.items()))
bars({f"pair {i:2}": float(np.log10(tokens)) for i, tokens in around.items()}, form=".1f")
print("(bars: the same as powers of ten)")


# %% [markdown]
# ## Trap one: which two numbers are a pair?
# Qwen2 pairs i with i + K/2, the halves. The paper, and llama2.c, pair the neighbours 2i and 2i +
# 1. Look at K = 8:
#
#     halves       0-4  1-5  2-6  3-7          neighbours   0-1  2-3  4-5  6-7
#
# It is the same mathematics in another order. Put the even channels first, then the odd ones, and
# neighbours become halves. So a checkpoint can be carried over by reordering the rows of q_proj and
# k_proj, once: this was done to Llama for Hugging Face. Qwen2 had halves from the start. Why? A
# half is one plain slice; neighbours need a shuffle.


# %%
def turn_neighbours(x_K, position):
    """The paper's pairing, by complex numbers: a pair (a, b) is a + bi, and turning multiplies it by e^(i angle)."""
    angle_Kh = position * 1e6 ** (-np.arange(0, len(x_K), 2) / len(x_K))
    pairs_Kh = (x_K[0::2] + 1j * x_K[1::2]) * np.exp(1j * angle_Kh)
    return np.stack([pairs_Kh.real, pairs_Kh.imag], axis=1).reshape(-1)


even_then_odd = [0, 2, 4, 6, 1, 3, 5, 7]
same = np.allclose(turn(q_K[even_then_odd], 9), turn_neighbours(q_K, 9)[even_then_odd], atol=1e-4)
print("reorder, then turn halves = turn neighbours, then reorder:", same)
for at in (0, 1, 40):
    right, wrong = turn(q_K, at) @ k_K, turn_neighbours(q_K, at) @ k_K
    print(f"distance {at:2}: halves {right:6.2f}   neighbours, not reordered {wrong:6.2f}")
print("At distance 0 nobody notices: a port with the wrong pairs starts well, and soon talks nonsense.")

# %% [markdown]
# ## Trap two: positions in bfloat16
# bfloat16 keeps 8 significant bits. 256 = 2^8 is its last whole number without a gap: 257 becomes
# 256, and the fastest hand is wrong by a whole radian. So angles are float32, even when all else is
# bfloat16.

# %%
positions = np.array([255, 256, 257, 258, 259])
rounded = positions.astype(bfloat16).astype(int)
rows = zip(positions.tolist(), rounded.tolist(), np.sin(positions), np.sin(rounded))
table("position  in bfloat16  sin  sin of it", *((a, b, f"{c:.3f}", f"{d:.3f}") for a, b, c, d in rows))

# %% What we know now
assert np.allclose(np.linalg.norm(turn(q_K, 77)), np.linalg.norm(q_K))  # lengths stay
assert np.array_equal(turn(q_K, 0), q_K)  # position 0 turns nothing
assert np.isclose(turn(q_K, 1005) @ turn(k_K, 1002), turn(q_K, 5) @ turn(k_K, 2), atol=1e-3)  # distance only
assert same and int(bfloat16(257)) == 256

# %%
# Exercise 1. Turn (3, 4) twice by a quarter turn, by hand.
twice = ...
# assert np.allclose(twice, turn([3, 4], np.float32(np.pi)), atol=1e-5)

# %%
# Exercise 2. The order that makes neighbours into halves, for K = 4: a list of four channel
# numbers.
order = ...
# assert np.allclose(turn(q_K[:4][order], 9), turn_neighbours(q_K[:4], 9)[order], atol=1e-4)

# %%
# Exercise 3. float16 has 11 significant bits. Which is its last whole number without a gap?
last = ...
# assert [int(np.float16(n)) for n in (last - 1, last, last + 1)] == [last - 1, last, last]
