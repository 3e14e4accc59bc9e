# %% [markdown]
# # 13. YaRN: four times the text that a model was trained on
# Goal: see which pairs of RoPE get lost in a long text, slow down those and no others, and sharpen softmax again.
#
#     turns[i] = trained / wavelength[i]               how often pair i went round in training
#     ramp[i]  = 0 where turns > 32,  1 where turns < 1,  a straight line over i between them
#     freq'[i] = freq[i] (1 - ramp[i]) + freq[i] / factor * ramp[i]
#     m        = 0.1 ln(factor) + 1                    q and k are multiplied by it
#
# Qwen2 was trained on texts of 32,768 tokens and is run on 131,072, with no training in between.
# Read beside this: tinyqwen/blocks/yarn.py, tinyqwen/blocks/rope.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import Backend
from tinyqwen.blocks.yarn import attention_factor, correction_range, slowed
from tinyqwen.config import Config, RopeScaling
from tinyqwen.config_json import parse_config
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree
from walkthrough.pictures import bars, heat, table

K, theta, trained, factor = 128, 1e6, 32768, 4
backend, scaling = Backend(dtype=np.float64), RopeScaling(factor, trained)
plain_Kh = theta ** -(np.arange(0, K, 2) / K)  # radians a token, of the 64 pairs of a head
yarn_Kh = slowed(backend, plain_Kh, theta=theta, scaling=scaling)

# %% [markdown]
# ## How often did each clock go round?
# Lesson 4: each pair is a clock's hand. In 32,768 tokens of training the fast ones went round
# thousands of times: they have pointed everywhere. The slow ones never came round.

# %%
turns_Kh = trained * plain_Kh / (2 * np.pi)
low, high = correction_range(K, theta, scaling)
bars({f"pair {i:2}": float(np.log10(1 + turns_Kh[i])) for i in (0, 8, 16, 23, 32, 40, 48, 63)}, form=".1f")
print("(bars: 1 + turns, as powers of ten)")
marks = np.where(turns_Kh > 32, "|", np.where(turns_Kh < 1, ".", "/"))
print(f"\npairs 0 to 63:  {''.join(marks)}\n                | more than 32 turns   / between   . never once")
print(f"whole pairs: up to {low} nothing changes, from {high} on all are slowed")

# %% [markdown]
# ## Lost: a slow hand comes round, and far looks near
# Pair 42 went 0.6 of a turn in training, and a head learned from it: up is here, down is far away.
# Let the text go on, and at 54,000 tokens the hand is up again: the far end looks like here.

# %%
distances = np.arange(0, 33, 2)  # in units of 4096 tokens; 8 is the end of training
here = lambda frequency: (1 + np.cos(4096 * distances * frequency)) / 2  # noqa: E731
print('pair 42, how much it says "here", by distance / 4096 (trained up to 8):')
heat([here(plain_Kh[42]), here(yarn_Kh[42])], ["plain", "YaRN"], [str(d) for d in distances])

# %% [markdown]
# Slowed down by 4, the hand has gone at token 131,072 as far as it had at 32,768. No angle is new.

# %% [markdown]
# ## Blurred: a fast hand must not be slowed
# Then why not slow down all of them (position interpolation)? A head that looks at the token before
# its own uses fast pairs, which peak at distance 1. Slowed by 4, they peak at distance 4.


# %%
def previous_token(frequency_Kh):
    """What a head that wants distance 1 gives the distances 0 to 7, with the 24 fastest pairs."""
    return np.cos(np.arange(8)[:, None] * frequency_Kh[:24] - plain_Kh[:24]).mean(axis=1)


found = {"plain": plain_Kh, "all slowed": plain_Kh / factor, "YaRN": yarn_Kh}
table(
    "distance  " + "  ".join(map(str, range(8))) + "  looks at",
    *((name, *(f"{s:.2f}" for s in previous_token(f)), previous_token(f).argmax()) for name, f in found.items()),
)

# %% [markdown]
# ## The ramp
# Between the two, pairs are slowed a little, more with each: the price is shared out.

# %%
bars({f"pair {i}": float(plain_Kh[i] / yarn_Kh[i]) for i in (20, 23, 26, 29, 32, 35, 38, 40, 60)}, form=".2f")

# %% [markdown]
# ## The temperature
# One key that matters, score 10, among keys of random scores. In a text four times as long it gets a
# third of the attention that it had: softmax shares among four times as many. YaRN multiplies q and
# k by m, so scores by m^2 = 1.30. The formula was found by trying, not derived; it wins back more
# than was lost.

# %%
m = attention_factor(scaling)
noise = np.random.default_rng(0).standard_normal(factor * trained)


def weight_of_the_key(keys, sharper=1.0):
    return np.exp(10 * sharper) / (np.exp(10 * sharper) + np.exp(noise[:keys] * sharper).sum())


attention = {"32k": weight_of_the_key(trained), "128k": weight_of_the_key(4 * trained)}
attention["128k, YaRN"] = weight_of_the_key(4 * trained, m * m)
bars({name: float(weight) for name, weight in attention.items()}, form=".2f")

# %% [markdown]
# ## Static: short texts change, too
# Frequencies and m do not look at the text. So `rope_scaling` is not in the published files: add it
# (or `--yarn 4`) for long texts, and leave it away for short ones.

# %%
config = Config(64, 128, 2, 4, 50, rope_theta=1e6)
weights, step = tree(random_weights(config, scale=0.3)), make_step([([7, 3, 9, 1, 4], None)])
before_NV, after_NV = (forward(backend, each, weights, step) for each in (config, config.with_yarn(4)))
print("five tokens, largest change of a logit:", np.abs(after_NV - before_NV).max().round(2))

# %% What we know now
card = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}  # as published for 7B and 72B
raw = dict(model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, vocab_size=152064)
raw |= dict(num_attention_heads=28, num_key_value_heads=4, rope_theta=1e6, rope_scaling=card)
assert parse_config(raw).rope_scaling == scaling and parse_config(raw).context == 131072
assert (low, high) == (23, 40) and round(m, 4) == 1.1386
assert np.allclose(yarn_Kh[:24], plain_Kh[:24]) and np.allclose(yarn_Kh[40:], plain_Kh[40:] / 4)
assert [previous_token(f).argmax() for f in found.values()] == [1, 4, 1]
assert np.allclose(np.cos(131072 * yarn_Kh[40:]), np.cos(32768 * plain_Kh[40:]))  # no angle is new

# %%
# Exercise 1. The wavelength of pair 42 was 54,000 tokens. After YaRN, how far away is the first key
# that looks like "here" to it?
tokens = ...
# assert abs(tokens - 2 * np.pi / yarn_Kh[42]) < 1000

# %%
# Exercise 2. A config has factor 4 and max_position_embeddings 131072, and forgets
# original_max_position_embeddings, for which the former then stands. From which pair on are all slowed?
first = ...
# assert first == correction_range(128, 1e6, RopeScaling(4, 131072))[1]

# %%
# Exercise 3. An engine multiplies only q by m. By how much are its scores too small, as a factor?
too_small = ...
# assert np.isclose(too_small * m * m, m)
