# %% [markdown]
# # 10. Experts: many feed-forward parts, of which each token uses a few
# Goal: route a token by hand, see who is busy, and see how a hair's breadth can send a token elsewhere.
#
#     p        = softmax( router(x) )                 over ALL experts
#     chosen   = the A experts with the largest p
#     out      = sum over chosen e of p[e] * expert_e(x)  +  sigmoid( shared_gate(x) ) * shared_expert(x)
#
# Qwen2-57B-A14B keeps 57 billion parameters and uses 14 billion for a token.
# Read beside this: tinyqwen/blocks/moe.py.

# %%
import sys
from itertools import pairwise

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get, nbytes, shape_only
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.moe import experts, route, sparse_moe
from tinyqwen.blocks.swiglu import feed_forward
from tinyqwen.config import Config
from tinyqwen.sizes import SIZES
from tinyqwen.weights import Node, count_parameters, random_weights, tree
from walkthrough.pictures import bars, table

backend = get("numpy")
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## The router, by hand
# Four experts, of which two are used. The router's logits are log 1, log 5, log 4, log 10, so that
# p = 1/20, 5/20, 4/20, 10/20 = 0.05, 0.25, 0.20, 0.50. Chosen: expert 3 with 0.50, 1 with 0.25.
#
# Particular to Qwen2: the softmax comes *before* the choice, so the two weights sum to 0.75, less
# than one (`norm_topk_prob` false, as published). With `norm_topk_prob` true they are divided by
# their sum: 2/3 and 1/3.


# %%
def routed(probabilities, normalise=False, top_k=2):
    """The model's own router: one token, x = 1, whose probabilities are these."""
    gate_ED = np.log(np.float32(probabilities))[:, None]
    expert_TA, weight_TA = route(backend, np.ones((1, 1), np.float32), gate_ED, top_k=top_k, normalise=normalise)
    return expert_TA[0], weight_TA[0]


print("norm_topk_prob false:  experts", *routed([0.05, 0.25, 0.2, 0.5]))
print("norm_topk_prob true:   experts", *routed([0.05, 0.25, 0.2, 0.5], normalise=True))

# %% [markdown]
# ## The whole block
# A sparse layer with E = 8 experts, A = 2 used, and the shared expert, which sees every token. Its
# gate is one sigmoid per token: how much of it this token wants. By hand, and by the model's block:

# %%
config = Config(
    model_type="qwen2_moe", hidden_size=16, intermediate_size=0, num_hidden_layers=1, num_attention_heads=2,
    vocab_size=10, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=24,
)  # fmt: skip
moe = tree(random_weights(config, seed=5, scale=0.4)).layers[0].mlp
x_TD = np.random.default_rng(6).standard_normal((200, 16), dtype=np.float32)
expert_TA, weight_TA = route(backend, x_TD, moe.gate.weight, top_k=2, normalise=False)

token = x_TD[:1]
by_hand = sum(p * feed_forward(backend, token, moe.experts[e]) for e, p in zip(expert_TA[0], weight_TA[0]))
open_1 = 1 / (1 + np.exp(-linear(backend, token, moe.shared_expert_gate.weight)))
by_hand = by_hand + open_1 * feed_forward(backend, token, moe.shared_expert)
same = np.allclose(by_hand, sparse_moe(backend, token, moe, config=config), atol=1e-5)
print(f"token 0: experts {expert_TA[0]}, weights {weight_TA[0].round(2)}, shared gate {open_1[0, 0]:.2f} open")
print("by hand = the model's block:", same)

# %% [markdown]
# ## Load
# 200 tokens choose two experts each: 400 places, 50 an expert if all were equal. Nothing forces
# them: no token is ever dropped. (In training a loss pulls the load together:
# `router_aux_loss_coef`.) An expert that nobody chose is not even read: hence the speed.

# %%
load_E = np.bincount(expert_TA.ravel(), minlength=8)
print("tokens of each expert, of 200:")
bars({f"expert {e}": int(load) for e, load in enumerate(load_E)}, form="d")
counts = count_parameters(SIZES["57B-A14B"].config())
print(f"57B-A14B: {counts['total'] / 1e9:.1f} billion parameters, {counts['active'] / 1e9:.1f} for one token")


def experts_read(T):
    """How many experts of a layer of the 57B-A14B a step of T tokens reads at most, from the block's own cost."""
    matrix = Node(weight=shape_only((1, 1)))
    all_64 = [Node(gate_proj=matrix, up_proj=matrix, down_proj=matrix)] * 64
    arrays = shape_only((T, 1)), shape_only((T, 8)), shape_only((T, 8))
    return (experts.cost_of(*arrays, all_64).read - nbytes(arrays)) // (3 * 4)


print(f"experts read in a layer, of 64: {experts_read(1)} for one token, at most {experts_read(1000)} for a thousand")

# %% [markdown]
# ## The margin to the next expert
# The choice is a cliff. The *margin* is how much less probable the best expert is that was not
# chosen. Where it is tiny, rounding decides: another machine, another order of summing, and the
# token goes elsewhere. Only such tokens may.

# %%
p_TE = np.sort(softmax(backend, linear(backend, x_TD, moe.gate.weight)), axis=-1)[:, ::-1]
margin_T = p_TE[:, 1] - p_TE[:, 2]
edges = [0, 0.003, 0.01, 0.03, 0.1, 0.3, 1]
print("how many tokens have a margin of")
bars({f"{a:5} to {b:5}": int(((a <= margin_T) & (margin_T < b)).sum()) for a, b in pairwise(edges)}, form="d")

# %% [markdown]
# ## A near tie
# Two experts with equal p: the lower number wins, always (a rule, so that all backends agree). Now
# make the other one likelier by one part in a million. The input has hardly changed; the expert is
# another, and so is the result.

# %%
tie, nudged = [0.5, 0.25, 0.25], [0.5, 0.25, 0.25 * (1 + 1e-6)]
answers = [np.float32([100, 10, -10])[routed(p)[0]] @ routed(p)[1] for p in (tie, nudged)]  # what the experts say
rows = zip(("tie", "nudged by 1e-6"), (routed(p)[0] for p in (tie, nudged)), answers)
table("  experts  out", *((name, chosen, f"{out:.2f}") for name, chosen, out in rows))
print("So tests compare the routing first, and forgive only tokens with a tiny margin.")

# %% What we know now
assert np.allclose(routed([0.05, 0.25, 0.2, 0.5])[1].sum(), 0.75)  # less than one: as published
assert np.allclose(routed([0.05, 0.25, 0.2, 0.5], normalise=True)[1], [2 / 3, 1 / 3])
assert same and load_E.sum() == 2 * 200  # every token gets its two experts
assert list(routed(tie)[0]) == [0, 1] and list(routed(nudged)[0]) == [0, 2]

# %%
# Exercise 1. p = 0.4, 0.3, 0.2, 0.1 and A = 3, norm_topk_prob true. What are the three weights?
weights = ...
# assert np.allclose(weights, routed([0.4, 0.3, 0.2, 0.1], normalise=True, top_k=3)[1])

# %%
# Exercise 2. Three sequences decode together on the 57B-A14B (E = 64, A = 8), one token each. How
# many experts of a layer are read at most? And with ten sequences?
three, ten = ..., ...
# assert (three, ten) == (experts_read(3), experts_read(10))

# %%
# Exercise 3. If all of shared_expert_gate.weight were zero, how far would that gate be open?
moe.shared_expert_gate.weight[:] = 0
gate = ...
routed_TD = experts(backend, x_TD, expert_TA, weight_TA, moe.experts)
shared_TD = feed_forward(backend, x_TD, moe.shared_expert)
# assert np.allclose(routed_TD + gate * shared_TD, sparse_moe(backend, x_TD, moe, config=config), atol=1e-5)
