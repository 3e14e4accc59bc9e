# %% [markdown]
# # 25. What a weight says: sixteen bits, of which four say next to nothing
# Goal: measure how much each bit of a bfloat16 tells, and read a model from three quarters of its bytes.
#
#     bfloat16 = sign 1, exponent 8, mantissa 7            value = (-1)^sign * 2^(exponent - 127) * (1 + mantissa / 128)
#     what a choice tells, in bits = - sum of p * log2(p)  p: how often each of the things chosen from is chosen
#
# To decode a token, a model reads every weight once, so bytes are time (lesson 12). int8 and int4 save bytes
# and lose accuracy. This lesson saves bytes and loses nothing.
# Read beside this: backends/packed.py, backends/cpu/packed_vector.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends.packed import SPAN, Packed, pack
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.tiny import FOLDER
from walkthrough.pictures import table

weights = open_checkpoint(FOLDER, dtype="bf16").weights  # of the embedded model, which was trained
weight_OI = weights.layers[1].mlp.down_proj.weight[:, :512]
bits_n = weight_OI.reshape(-1).view(np.uint16)

# %% [markdown]
# ## What each part tells
# A part that is the same in every number tells nothing; one that takes all its values equally often tells as
# many bits as it has.


# %%
def told(part_n):
    """What a part of the numbers tells, in bits."""
    share = np.unique(part_n, return_counts=True)[1] / len(part_n)
    return float(-(share * np.log2(share)).sum())


parts = {"sign": (bits_n >> 15, 1), "exponent": (bits_n >> 7 & 255, 8), "mantissa": (bits_n & 127, 7)}
table("part  bits  tells", *((name, size, f"{told(part):.1f}") for name, (part, size) in parts.items()))

# %% [markdown]
# Sign and mantissa are as good as random. The exponent has eight bits and tells less than three: weights
# scatter around zero, and half of all lie within a factor of 4 of each other.
#
# ## Where the exponents are
# Counted from the largest one down. What is behind the first sixteen is one weight in thousands.

# %%
exponent_n = parts["exponent"][0].astype(int)
below_n = exponent_n.max() - exponent_n
for depth in range(0, 16, 2):
    share = float(np.isin(below_n, (depth, depth + 1)).mean())
    print(f"{-depth:4} {share:6.1%} {'#' * round(80 * share)}")
print(f"rest {float((below_n >= 16).mean()):6.2%}")

# %% [markdown]
# ## The upper byte
# Bytes are what memory has, so cut the number in two: the lower byte (the last bit of the exponent, and the
# mantissa) stays. The upper one is the sign and seven bits of exponent. A row uses eight of those, sixteen with
# the sign: **four bits** say which, and a table of sixteen bytes says what they mean. A processor looks 64 of them
# up with one instruction. A block of 128 numbers with one that does not fit is kept as it was.

# %%
packed = pack(np.ascontiguousarray(weight_OI))
upper_n = bits_n >> 8
print("upper bytes there could be:", 256, "  there are:", len(np.unique(upper_n)), "  a row has room for:", 2 * SPAN)
print(f"blocks kept as they were: {len(packed.place_R)} of {weight_OI.size // 128}")
print(f"bytes: {packed.nbytes / weight_OI.nbytes:.1%} of those in bfloat16")

# %% [markdown]
# ## Nothing is lost
# Not "nearly nothing": each bit of each number comes back. So a model answers the same, word for word.

# %%
back_OI = packed.astype(weight_OI.dtype)
print(
    "bits that differ:", int(np.unpackbits((back_OI.view(np.uint16) ^ weight_OI.view(np.uint16)).view(np.uint8)).sum())
)

# %% [markdown]
# ## What does not fit
# The rule is about trained weights. Numbers of all magnitudes are better left alone: then every block is kept,
# and the codes come on top. Loading notices (tinyqwen/checkpoint/loading.py), and takes them as they are.

# %%
wild_OI = np.ldexp(1.0, np.random.default_rng(0).integers(-60, 60, (8, 512))).astype(weight_OI.dtype)
print(f"numbers of all magnitudes: {pack(wild_OI).nbytes / wild_OI.nbytes:.0%}")

# %% What we know now
assert isinstance(packed, Packed) and (back_OI.view(np.uint16) == weight_OI.view(np.uint16)).all()
assert told(parts["exponent"][0]) < 3 and told(parts["mantissa"][0]) > 6.9
assert packed.nbytes < 0.8 * weight_OI.nbytes < pack(wild_OI).nbytes * weight_OI.size / wild_OI.size

# %%
# Exercise 1. The best code would give each exponent as many bits as it tells. How many bits would a weight have then?
best = ...
# assert abs(best - (1 + told(parts["exponent"][0]) + 7)) < 0.01

# %%
# Exercise 2. Qwen2-7B has 7.6 billion weights. How many GB are they in bfloat16 and in 12 bits, blocks that are
# kept not counted?
sizes = ...
# assert np.allclose(sizes, (15.2, 11.4))

# %%
# Exercise 3. Of 10,000 numbers one does not fit, by chance. How many of 1000 blocks of 128 are kept as they were?
kept = ...
# assert abs(kept - 1000 * (1 - 0.9999**128)) < 0.5
