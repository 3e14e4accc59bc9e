# %% [markdown]
# # 18. Reward and tax: online DPO, GRPO, and merging online
# Goal: improve a skill without being told a single answer, see what another skill pays for it, and pay less.
#
#     answers    sample G to each prompt, from the model as it is now; a verifier says right (1) or wrong (0)
#     GRPO       A = (reward - mean of the group) / deviation: what is better becomes likelier
#     online DPO the best and the worst of the group are a pair
#     OnTIES     of each step only the largest numbers, merged with what fine-tuning had changed
#
# Read beside this: tinyqwen/train/grpo.py, tinyqwen/train/optimisers/online_merging.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.train import grpo, online_dpo, sft
from tinyqwen.train.chats import answered
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.losses import advantages
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.optimisers.named import optimiser
from tinyqwen.train.optimisers.online_merging import on_ties, task_vector
from tinyqwen.train.reference import frozen
from tinyqwen.train.rollouts import Policy, Task, Tasks
from tinyqwen.train.training import Training
from tinyqwen.train.verifiers import Verifier
from tinyqwen.weights import tree

np.set_printoptions(precision=2, suppress=True)

# %% [markdown]
# ## A group, by hand
# Four answers, one of them right: rewards 1, 0, 0, 0. Their mean is 1/4 and their deviation 1/2, so
# A = 1.5 for the right one and -0.5 for the others. If all are right, or none, there is nothing to
# compare: A = 0. Such groups teach nothing, so begin with a model that is right sometimes.

# %%
print("one of four right:", advantages(np.array([[1.0, 0, 0, 0]]))[0], "  all right:", advantages(np.ones((1, 4)))[0])

# %% [markdown]
# ## Two skills, half learnt
# On a clock of seven hours: `a + b` and `a - b`, learnt from all 98 answers, but stopped early. That
# model is the start (SFT); the one of some steps before is the base.

# %%
N, PLUS, MINUS = 7, 7, 8
config = Config(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=N + 2,
                tie_word_embeddings=True, initializer_range=0.3)  # fmt: skip
backend = get("numpy")
problems = {sign: [([a, sign, b], (a + b if sign == PLUS else a - b) % N) for a in range(N) for b in range(N)]
            for sign in (PLUS, MINUS)}  # fmt: skip


def solved(tensors):
    """How many of the additions, and of the subtractions, the likeliest answer solves."""
    step = make_step([(ids, None) for both in problems.values() for ids, _ in both])
    said_N = forward(backend, config, tree(tensors), step).argmax(axis=-1)
    return (said_N == [out for both in problems.values() for _, out in both]).reshape(2, -1).mean(axis=1)


def trained(tensors, stage, settings, task=None):
    """A copy of the model, which went through all steps of a stage."""
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    run = Training(backend, config, tensors, start(backend, tensors), stage(tree(tensors), settings), settings,
                   update=optimiser(settings, task))  # fmt: skip
    while run.number < settings.steps:
        run.step()
    return tensors


examples = sft.Conversations([answered(ids, [out]) for both in problems.values() for ids, out in both], 99)
learn = lambda weights, settings: sft.stage(examples, settings)  # noqa: E731
how = {"batch": 49, "warmup": 0, "weight_decay": 0.0}
base = trained(initial_weights(config, 0), learn, sft.Settings(steps=7, lr=5e-3, schedule="cosine", **how))
tuned = trained(base, learn, sft.Settings(steps=5, lr=3e-3, schedule="cosine", **how))
print(f"measured: solved, additions and subtractions: base {solved(base)}, SFT {solved(tuned)}")

# %% [markdown]
# ## Practise additions
# From here on nobody says what 4 + 6 is. The model answers, eight times each; a verifier compares.
# Subtraction is not practised: what it loses is the *alignment tax*.

# %%
tasks = Tasks([Task(ids, [], Verifier("exact", str(out))) for ids, out in problems[PLUS]], 99)


def right(asked, given):
    """The verifier: 1 or 0 for each answer."""
    return np.array([float(task.verifier.what == str(one.example.ids[-1])) for task, one in zip(asked, given)])


def practise(kind):
    policy = Policy(backend, config, None, frozenset(range(N)), N, str)  # an answer is one number
    before = frozen(backend, config, tree(tuned))
    return lambda weights, settings: kind.stage(tasks, settings, policy._replace(weights=weights), right, before)


online = {"steps": 30, "batch": 8, "group": 8, "answer": 1, "warmup": 0}
ties = {"optimiser": "onties", "keep": 0.2, "alpha": 0.003}
task = task_vector(tuned, base)  # what fine-tuning changed
found = {
    "SFT, the start": tuned,
    "online DPO": trained(tuned, practise(online_dpo), online_dpo.Settings(lr=1e-3, **online)),
    "GRPO": trained(tuned, practise(grpo), grpo.Settings(lr=1e-3, **online)),
    "GRPO, OnTIES": trained(tuned, practise(grpo), grpo.Settings(lr=1e-3, **online, **ties), task),
}
found["GRPO, half merged with SFT"] = {name: (found["GRPO"][name] + x) / 2 for name, x in tuned.items()}
after = {name: solved(tensors) for name, tensors in found.items()}
for name, (plus, minus) in after.items():
    print(f"measured: {name:28} +  {plus:.2f}   -  {minus:.2f}")

# %% [markdown]
# The tax is what the other skill lost. Averaging with the SFT model afterwards gives some of it back;
# OnTIES leaves out four fifths of each step. More seeds: `python -m tinyqwen.bench.post_training`.
#
# ## One merged step, by hand
# OnTIES, keep 1/2, alpha 1/4: delta = (4, 1, -2, 0), tau = (8, 4, 2, -6). Kept of delta: 4 and -2, of
# tau: 8 and -6. Weighted by 3/4 and 1/4: (3, 0, -1.5, 0) and (2, 0, 0, -1.5). Signs agree: add.

# %%
print("theta moves by", on_ties({"x": np.array([8, 4, 2, -6.0])}, keep=0.5, alpha=0.25)("x", np.array([4, 1, -2, 0.0])))

# %% What we know now
first, grown = after["SFT, the start"], after["GRPO"]
assert grown[0] > first[0] + 0.1 and after["online DPO"][0] > first[0] + 0.1, "better without a single answer told"
assert grown[1] < first[1] - 0.1, "the tax"
assert after["GRPO, half merged with SFT"][1] >= grown[1] and after["GRPO, OnTIES"][1] >= grown[1] - 0.05

# %%
# Exercise 1. Five answers, rewards 1, 1, 0, 0, 0, without division by the deviation. All five A?
A = ...
# assert np.allclose(A, advantages(np.array([[1.0, 1, 0, 0, 0]]), by_deviation=False)[0])

# %%
# Exercise 2. Rewards of two groups: (0, 1, 1), (1, 1, 1). Which of the six become (chosen, rejected)?
pairs = ...
# assert pairs == online_dpo.best_and_worst(np.array([[0, 1, 1], [1, 1, 1]]))

# %%
# Exercise 3. OnTIES, keep 1, alpha 1/2: delta = (2, -2, 1), tau = (2, 6, -4). What is added?
step = ...
# assert np.allclose(step, on_ties({"x": np.array([2.0, 6, -4])}, keep=1, alpha=0.5)("x", np.array([2.0, -2, 1])))
