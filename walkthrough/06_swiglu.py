# %% [markdown]
# # 6. SwiGLU: a gate for every number
# Goal: compute the feed-forward part by hand, see what its gate does, and where a model's parameters are.
#
#     out = down( silu(gate(x)) * up(x) )        silu(z) = z * sigmoid(z) = z / (1 + exp(-z))
#
# After attention has brought information to a token, the feed-forward part works on it, for each
# token alone: D numbers are widened to F, gated, and brought back to D. Read beside this:
# tinyqwen/blocks/swiglu.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.blocks.swiglu import feed_forward, swiglu
from tinyqwen.config import Config
from tinyqwen.sizes import SIZES
from tinyqwen.weights import Node, random_weights, tensor_shapes, tree
from walkthrough.pictures import bars, table

backend = get("numpy")
np.set_printoptions(precision=3, suppress=True)


def silu(z):
    """The model's own, with up = 1."""
    z = np.atleast_1d(np.float32(z))
    return swiglu(backend, z, np.ones_like(z))


# %% [markdown]
# ## silu, by hand
# Take z = log 3 = 1.0986: exp(-z) is 1/3, so sigmoid(z) = 1 / (1 + 1/3) = 3/4 and silu(z) = 0.824.
# Large z pass whole, very negative ones not at all; in between the gate opens smoothly. Unlike ReLU
# (max of z and 0) it lets a little of the negative through, down to -0.278, so training does not
# lose a channel for good.

# %%
z = [-8, -4, -2, -1.278, -1, 0, 1.0986, 2, 4, 8]
numbers = [(a, 1 / (1 + np.exp(-a)), b, max(a, 0)) for a, b in zip(z, silu(z))]
table("z  sigmoid: how open  silu  ReLU", *[(row[0], *(f"{number:.3f}" for number in row[1:])) for row in numbers])
print("how open the gate is:")
bars({f"z = {a:6.3f}": float(1 / (1 + np.exp(-a))) for a in z}, form=".2f")

# %% [markdown]
# ## The gate
# `gate` decides how much of `up` passes. gate = log 3 and up = 4: out = 3/4 * 1.0986 * 4 = 3.296.
# The same up behind a shut gate: nothing. And up has a sign of its own.

# %%
gate_TF, up_TF = np.float32([[np.log(3), -20, 20, 20]]), np.float32([[4, 4, 4, -4]])
out_TF = swiglu(backend, gate_TF, up_TF)
for gate, up, out in zip(gate_TF[0], up_TF[0], out_TF[0]):
    print(f"gate {gate:7.3f}   up {up:6.3f}   out {abs(out) if abs(out) < 1e-3 else out:7.3f}")

# %% [markdown]
# ## Why two matrices on the way in?
# Because silu(gate) * up multiplies one view of x with another, a network can *multiply*. Here is
# one that squares, exactly, with F = 2. It needs only this: silu(z) - silu(-z) = z * (sigmoid(z) +
# sigmoid(-z)) = z.
#
#     gate = (x, -x)     up = (x, x)     down = first minus second     out = x * silu(x) - x * silu(-x) = x^2


# %%
def network(gate_FD, up_FD, down_DF):
    """These three matrices, under the names that the model gives them."""
    names = {"gate_proj": gate_FD, "up_proj": up_FD, "down_proj": down_DF}
    return Node(**{name: Node(weight=np.float32(matrix)) for name, matrix in names.items()})


square = network([[1], [-1]], [[1], [1]], [[1, -1]])
for x in (-3, 0.5, 2, 7):
    print(f"{x:5} squared is {feed_forward(backend, np.float32([[x]]), square)[0, 0]:.3f}")

# %% [markdown]
# ## Each token alone
# Shuffle the tokens, and the results are shuffled, nothing else. So batches and experts are easy
# here.

# %%
config = Config(hidden_size=8, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)
weights = tree(random_weights(config, scale=0.5)).layers[0].mlp
x_TD = np.random.default_rng(2).standard_normal((5, 8), dtype=np.float32)
order = [3, 1, 4, 0, 2]
alone = np.allclose(feed_forward(backend, x_TD[order], weights), feed_forward(backend, x_TD, weights)[order], atol=1e-5)
print("shuffled in, shuffled out:", alone)

# %% [markdown]
# ## Where the parameters are
# Three matrices of D x F a layer, and F is several times D. Particular to Qwen2: no biases here,
# and a wide F in the 0.5B (5.4 times D; the 7B 5.3, the 72B 3.6). Counted from the shapes of the
# checkpoint:


# %%
def share(name):
    """Millions of parameters of a published model, by part."""
    parts = {"embedding": "embed_tokens", "attention": "self_attn", "feed-forward": ".mlp.", "head": "lm_head"}
    shapes = tensor_shapes(SIZES[name].config()).items()
    return {
        part: sum(int(np.prod(shape)) for tensor, shape in shapes if mark in tensor) / 1e6
        for part, mark in parts.items()
    }


for name in ("0.5B", "72B"):
    print(f"Qwen2-{name}, millions of parameters (a head of 0: it is the embedding table again):")
    bars(share(name), form=",.0f")

# %% What we know now
assert np.allclose(silu(np.log(3)), 0.75 * np.log(3))
assert np.isclose(silu(np.linspace(-3, 0, 3001)).min(), -0.278, atol=1e-3)  # the deepest point, at z = -1.278
assert alone
assert max(share("0.5B"), key=share("0.5B").get) == max(share("72B"), key=share("72B").get) == "feed-forward"

# %%
# Exercise 1. What is silu(-log 3)? By hand, as above.
answer = ...
# assert np.allclose(answer, silu(-np.log(3)))

# %%
# Exercise 2. How many floating point operations does the feed-forward part of Qwen2-0.5B need for
# one token in one layer? Count the three matrices only (D = 896, F = 4864); a multiply and an add
# are two.
flops = ...
# assert np.isclose(flops, 2e6 * share("0.5B")["feed-forward"] / 24)

# %%
# Exercise 3. Two numbers come in: x = (a, b). With up = (b, b) and down as above, which gate makes
# a * b of them? A matrix of F = 2 rows and D = 2 columns. (The assert tries 3 * 5 and -2 * 4.)
x_TD, gate_FD = np.float32([[3, 5], [-2, 4]]), ...
# assert np.allclose(feed_forward(backend, x_TD, network(gate_FD, [[0, 1], [0, 1]], [[1, -1]])), [[15], [-8]])
