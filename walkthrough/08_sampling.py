# %% [markdown]
# # 8. Sampling: from logits to one token
# Goal: watch each filter work on the same eight words, and say which of them a setting keeps.
#
#     logits -> repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax -> one token by chance
#
# A filter sets what it removes to minus infinity, and softmax shares the rest. The order matters,
# and it is that of transformers. Read beside this: tinyqwen/sampling.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.blocks.attention import softmax
from tinyqwen.sampling import Sampling, filtered, sample
from walkthrough.pictures import bars

backend = get("numpy")

# %% [markdown]
# ## Eight words
# "The cat sat on the ..." A model gives logits; ours are logarithms of per cents, so that softmax
# gives them back.

# %%
words = ["mat", "sofa", "floor", "roof", "moon", "fish", "idea", "seven"]
percent = np.float32([36, 20, 20, 10, 6, 4, 3, 1])
logits_V = np.log(percent)


def probabilities(seen=(), **settings):
    """What is left of the words, in per cent, under these settings."""
    seen_N = np.array([words.index(word) for word in seen], int)
    kept_V = filtered(backend, logits_V, seen_N, Sampling(do_sample=True, **settings))
    return {word: float(p) for word, p in zip(words, 100 * softmax(backend, kept_V))}


def show(title, **settings):
    print(title)
    bars({f"  {word}": p for word, p in probabilities(**settings).items()}, form=".1f", width=30)


def kept(**settings):
    """The words that remain possible."""
    return [word for word, p in probabilities(**settings).items() if p > 0]


show("as the model says, in per cent:")

# %% [markdown]
# ## Temperature: p becomes p^(1 / temperature), shared anew
# By hand, temperature 1/2 squares. The squares of 36, 20, 20, 10, 6, 4, 3, 1 are 1296, 400, 400,
# 100, 36, 16, 9, 1: together 2258, so mat has 1296 / 2258 = 57.4 %. Below 1 sharpens, above 1
# flattens.

# %%
show("temperature 0.5:", temperature=0.5)
show("temperature 2:", temperature=2.0)

# %% [markdown]
# ## top-k: keep the k likeliest, and all ties
# k = 2 keeps mat and sofa, and floor too: it is exactly as likely as sofa, and nothing speaks
# against it.

# %%
show("top_k 2:", top_k=2)

# %% [markdown]
# ## top-p: keep the smallest set that reaches p
# p = 0.8: mat, sofa and floor are 76 %, too few; with roof they are 86 %. The word that crosses the
# line stays in. A sure model keeps few words so, an unsure one many: top-k cannot do that.

# %%
show("top_p 0.8:", top_p=0.8)

# %% [markdown]
# ## min-p: remove what is far behind the best
# min_p = 0.2: whatever has less than 0.2 * 36 % = 7.2 %.

# %%
show("min_p 0.2:", min_p=0.2)

# %% [markdown]
# ## Repetition penalty: words that occurred become less likely
# A logit above 0 is divided by the penalty, one below 0 is multiplied: both times it falls. It
# comes first, and greedy decoding applies it, too. Here "mat" has been said, and the penalty is
# 1.3: (log 36) / 1.3 = 2.757 = log 15.7.

# %%
show("repetition_penalty 1.3, mat was said:", seen=["mat"], repetition_penalty=1.3)

# %% [markdown]
# ## All together, and the dice
# Qwen2-7B-Instruct says temperature 0.7, top_k 20, top_p 0.8, repetition_penalty 1.05 (the 0.5B and
# 1.5B 1.1). After the filters a number between 0 and 1 falls on a line where each word has its
# share: here 1000 evenly spaced ones, so that no luck is involved.

# %%
published = Sampling(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
seen_N = np.array([words.index("mat")])
dice = (np.arange(1000) + 0.5) / 1000
chosen = [words[int(sample(backend, logits_V, seen_N, sampling=published, uniform=u))] for u in dice]
print("1000 throws with Qwen2's own settings, mat was said:")
bars({f"  {word}": chosen.count(word) for word in words}, form="d", width=30)

# %% What we know now
assert kept(top_k=2) == ["mat", "sofa", "floor"]  # ties stay
assert kept(top_p=0.8) == ["mat", "sofa", "floor", "roof"]  # the one that crosses stays
assert kept(min_p=0.2) == ["mat", "sofa", "floor", "roof"]
assert probabilities(temperature=0.5)["mat"] > 57 > 36 > probabilities(temperature=2.0)["mat"]
assert probabilities(seen=["mat"], repetition_penalty=1.3)["mat"] < probabilities()["floor"]
assert set(chosen) == {"mat", "sofa", "floor"}  # temperature comes before top-p: sharper, so fewer words are needed

# %%
# Exercise 1. At temperature 1/2, what is roof's share, in per cent? By hand, as above.
roof = ...
# assert abs(roof - probabilities(temperature=0.5)["roof"]) < 0.01

# %%
# Exercise 2. Which words does top_p = 0.95 keep? A list, in the order above.
remaining = ...
# assert remaining == kept(top_p=0.95)

# %%
# Exercise 3. Give a min_p that keeps exactly the words that top_k = 5 keeps here.
least = ...
# assert kept(min_p=least) == kept(top_k=5)
