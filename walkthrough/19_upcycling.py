# %% [markdown]
# # 19. Upcycling: experts out of one dense model, and where they specialise
# Goal: cut a trained feed-forward part into experts, see what is kept, train on, and see who does what.
#
#     replicate        copies of the dense part, as many as are needed
#     shuffle          its hidden units change places: each copy still computes the same
#     slice            all copies laid end to end, so many units to an expert
#     re-initialise    half of each expert begins anew, or all would stay alike
#
# Qwen2-57B-A14B was made so of Qwen2-7B. Read beside this: tinyqwen/train/upcycle.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import Wrapper, get
from tinyqwen.blocks.moe import route
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.train import sft
from tinyqwen.train.chats import answered, pack
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.reference import frozen
from tinyqwen.train.training import Training
from tinyqwen.train.upcycle import Recipe, Units, expert_units, scale_for_dense, upcycle
from tinyqwen.weights import count_parameters, tree

# %% [markdown]
# ## Slices, by hand
# A dense part of F = 6 units, E = 4 experts of M = 4: 16 units are needed, so three copies, laid end
# to end: units 0 to 5, shuffled, three times. The second expert takes the last two of the first copy
# and two of the next; two are left over. Each copy cut by itself would give three experts, not four.

# %%
six = Units(*(np.arange(6.0).reshape(shape) for shape in ((6, 1), (6, 1), (1, 6))))  # each unit is its number
for name, part in (("sliced", 0.0), ("half anew", 0.5)):
    recipe = Recipe(experts=4, per_token=2, width=4, reinitialised=part)
    units = [expert.gate_ND[:, 0] for expert in expert_units(six, recipe, np.random.default_rng(0))]
    print(
        f"{name:10}", *(" ".join("*" if unit % 1 else f"{unit:.0f}" for unit in expert) for expert in units), sep="   "
    )

# %% [markdown]
# ## A dense model with three skills
# Of a row of four letters say the first, the largest, or the one at its end.

# %%
backend, LETTERS, SKILLS = get("numpy"), 8, ("first", "largest", "end")
config = Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                vocab_size=LETTERS + len(SKILLS), tie_word_embeddings=True, initializer_range=0.3)  # fmt: skip


def problems(seed, count):
    rows = np.random.default_rng(seed).integers(0, LETTERS, (count, 4)).tolist()
    said = [(row[0], max(row), row[-1])[n % 3] for n, row in enumerate(rows)]
    return [answered([*row, LETTERS + n % 3], [answer]) for n, (row, answer) in enumerate(zip(rows, said))]


def unseen(config, tensors):
    test, token_N, _ = pack(problems(99, 90))
    return -float(frozen(backend, config, tree(tensors))(test, token_N).mean())


def learn(config, tensors, steps, seed):
    tensors, before = {name: x.copy() for name, x in tensors.items()}, unseen(config, tensors)
    settings = sft.Settings(steps=steps, batch=30, lr=5e-3, warmup=5, weight_decay=0.0)
    stage = sft.stage(sft.Conversations(problems(seed, 30 * steps), 99), settings)
    run = Training(backend, config, tensors, start(backend, tensors), stage, settings)
    for _ in range(steps):
        run.step()
    return tensors, (before, unseen(config, tensors))


dense, _ = learn(config, initial_weights(config, 0), 30, seed=1)

# %% [markdown]
# ## What the mixture computes before it learns
# The *shared* expert is the dense part (doubled, as its gate begins half open): alone it is the dense
# model. And without it, all experts chosen, nothing anew and the right scale, the slices add up to it.

# %%
sparse, silent = upcycle(config, dense, Recipe(experts=4, per_token=2, width=32, scale=0, reinitialised=0))
recipe = Recipe(experts=4, per_token=4, width=32, reinitialised=0)
all_four, slices = upcycle(config, dense, recipe.for_model(config, scale=scale_for_dense(config, recipe)))
for name, tensor in slices.items():
    if name.endswith(("mlp.gate.weight", "shared_expert.down_proj.weight")):
        tensor[...] = 0  # a router that holds all alike, and no shared expert
same = np.allclose([unseen(sparse, silent), unseen(all_four, slices)], unseen(config, dense), atol=1e-4)
print("the same loss as the dense model's:", same)

# %% [markdown]
# ## On the same tokens
# The dense model goes on; so do two mixtures made of it, and one whose every number is random.

# %%
forms = {"dense": (config, dense)}
for name, part in (("copies", 0.0), ("half anew", 0.5)):
    forms[name] = upcycle(config, dense, Recipe(experts=4, per_token=2, width=32, reinitialised=part))
forms["random"] = sparse, initial_weights(sparse, 3)
grown = {name: learn(*form, 25, seed=2) for name, form in forms.items()}
for name, (_, losses) in grown.items():
    size = count_parameters(forms[name][0])["total"]
    print(f"measured: {name:10} {size:,} parameters   loss before {losses[0]:.2f}, after {losses[1]:.2f}")


# %% [markdown]
# ## Who does what
# How often the last token of a problem chose each expert of the last layer. Nobody told them to share.


# %%
class Routes(Wrapper):
    """Keeps what the routers chose."""

    def run(self, operation, arrays, settings, door=None):
        out = super().run(operation, arrays, settings, door)
        self.chosen_TA = out[0] if operation is route else getattr(self, "chosen_TA", None)
        return out


watching, (test, _, _) = Routes(backend), pack(problems(99, 90))
forward(watching, sparse, tree(grown["half anew"][0]), test)
chosen = [watching.chosen_TA[test.row_N][skill::3].ravel() for skill in range(3)]
share = np.array([np.bincount(experts, minlength=4) / 30 for experts in chosen])
for name, experts in zip(SKILLS, share):
    print(f"measured: {name:10}", *(f"{part:5.2f}" for part in experts))

# %% What we know now
assert same and grown["half anew"][1][1] < grown["random"][1][1], "what the dense model knew is worth more than size"
assert np.isclose(share.sum(), 2 * 3) and share.std(axis=0).max() > 0.05, "the skills do not choose alike"

# %%
# Exercise 1. F = 100 units, E = 12 experts of M = 30. How many copies, and units left over?
copies, left = ..., ...
# assert (copies, left) == (-(-12 * 30 // 100), -(-12 * 30 // 100) * 100 - 12 * 30)

# %%
# Exercise 2. E = 16, A = 4, F = 96, M = 24: what scale makes the routed experts one dense part on average?
scale = ...
# assert scale == scale_for_dense(Config(8, 96, 1, 2, 9), Recipe(experts=16, per_token=4, width=24))

# %%
# Exercise 3. If the shared down_proj were not doubled, the dense part would be multiplied by what?
factor = ...
# assert factor == 1 / (1 + np.exp(0))
