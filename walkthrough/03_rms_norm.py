# %% [markdown]
# # 3. RMSNorm: one loudness for every vector
# Goal: normalise a vector by hand, and know what it forgets, what it keeps, and what eps is for.
#
#     y = x / sqrt(mean(x^2) + eps) * weight
#
# sqrt(mean(x^2)) is the *root mean square*, as an engineer measures the loudness of a sound. Every
# layer adds to the residual stream, so it grows louder and louder. Each part of a layer therefore
# reads a copy turned to loudness 1. Read beside this: tinyqwen/blocks/rms_norm.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import Wrapper, get
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tensor_shapes, tree
from walkthrough.pictures import bars, table

backend = get("numpy")
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## By hand
# x = (1, 7). Squares: 1 and 49, their mean is 25, the root is 5. So y = (1/5, 7/5) = (0.2, 1.4).
# Check its loudness: (0.04 + 1.96) / 2 = 1.

# %%
one = np.float32([1, 1])  # the learned weights, one per channel: here they change nothing
y_TD = rms_norm(backend, np.float32([[1, 7]]), one, eps=0.0)
print("(1, 7) becomes", y_TD[0])
assert np.allclose(y_TD, [[0.2, 1.4]])

# %% [markdown]
# ## What it forgets, what it keeps
# Ten times as loud: the same result. Loudness is forgotten, direction and sign are kept. LayerNorm,
# the older way, would also subtract the mean: to it (1, 7) and (101, 107) are the same. RMSNorm
# does not.


# %%
def layer_norm(x_TD):
    """The older way, for comparison."""
    centred_TD = x_TD - x_TD.mean(axis=-1, keepdims=True)
    return centred_TD / np.sqrt((centred_TD**2).mean(axis=-1, keepdims=True))


x_TD = np.float32([[1, 7], [10, 70], [-1, -7], [101, 107]])
y_TD = rms_norm(backend, x_TD, one, eps=0.0)
say = lambda pair: f"({pair[0]:6.2f}, {pair[1]:6.2f})"  # noqa: E731
table("x  RMSNorm  LayerNorm", *zip(map(say, x_TD), map(say, y_TD), map(say, layer_norm(x_TD))))

# %% [markdown]
# ## The weight
# After the loudness, each channel is multiplied by a learned number: the model may whisper in one
# channel and shout in another. (In Qwen2's checkpoints: `input_layernorm.weight`,
# `post_attention_layernorm.weight`, `norm.weight`.)

# %%
loud_second = rms_norm(backend, np.float32([[1, 7]]), np.float32([1, 10]), eps=0.0)
print("with weight (1, 10):", loud_second[0])

# %% [markdown]
# ## eps: a floor for silence
# A vector of zeros has loudness 0, and 0 / 0 is not a number. eps under the root forbids that. A
# price: whatever is quieter than sqrt(eps) stays quiet. Qwen2 says 1e-6; the base models of 72B,
# 2.5-14B, 2.5-32B and 2.5-72B say 1e-5.

# %%
for loudness in (1, 0.01, 0.001, 0.0001, 0):
    x_TD = np.float32([[loudness, -loudness]])
    out = np.abs(rms_norm(backend, x_TD, one, eps=1e-6)).max()
    print(f"loudness {loudness:<6} becomes {out:.3f}")


# %% [markdown]
# ## Why a model needs it
# Six layers of random weights. First, the residual stream before each norm: every part adds to it.
# Then, what the next part gets to see, in the same scale. (Not exactly 1: here the learned weights
# are dice around 1.)


# %%
class Loudness(Wrapper):
    """Notes the loudness of what goes into each norm, and of what comes out."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def run(self, operation, arrays, settings, door=None):
        out = super().run(operation, arrays, settings, door)
        if operation.name == "rms_norm":
            self.seen.append([float(np.sqrt((array**2).mean())) for array in (arrays[0], out)])
        return out


config = Config(hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, vocab_size=50)
listening = Loudness(backend)
forward(listening, config, tree(random_weights(config, seed=3, scale=0.2)), make_step([([1, 2, 3, 4], None)]))
before, after = zip(*listening.seen)
print("loudness of the stream, before each norm:")
bars({f"norm {n}": value for n, value in enumerate(before)}, form=".1f")
print("loudness after each norm, in the same scale:")
bars({"before": max(before), **{f"norm {n}": value for n, value in enumerate(after)}}, form=".1f")

# %% What we know now
assert np.allclose(y_TD[0], y_TD[1])  # loudness is forgotten
assert np.allclose(y_TD[0], -y_TD[2])  # sign is kept
assert not np.allclose(y_TD[0], y_TD[3], atol=0.1)  # so is the mean: RMSNorm is not LayerNorm
assert len(before) == 2 * config.num_hidden_layers + 1  # two norms a layer, and one before the head
assert max(after) < 1.2 < 5 < max(before)
assert not any("norm.bias" in name for name in tensor_shapes(config))  # a weight, but no bias
assert SIZES["72B"].config(base=True).rms_norm_eps == 1e-5 > SIZES["72B"].config().rms_norm_eps == 1e-6

# %%
# Exercise 1. Normalise (6, 8, 0, 0) by hand, with eps 0 and weights (1, 1, 1, 1).
y = ...
# assert np.allclose(y, rms_norm(backend, np.float32([[6, 8, 0, 0]]), np.ones(4, np.float32), eps=0.0)[0])

# %%
# Exercise 2. With eps = 1e-6, how loud is a vector that comes out with loudness exactly 1/2? (Solve
# the formula.)
loudness = ...
# assert np.allclose(rms_norm(backend, np.float32([[loudness, loudness]]), one, eps=1e-6), 0.5)

# %%
# Exercise 3. How many norms has Qwen2-72B, with its 80 layers?
norms = ...
# assert norms == sum("norm" in name for name in tensor_shapes(SIZES["72B"].config()))
