# %% [markdown]
# # 17. Answers and preferences: fine-tuning and its mask, and DPO
# Goal: teach a model to answer and to stop, see what the mask is for, and then make it prefer one good answer.
#
#     SFT    loss = - mean of log p(token), over the tokens that the assistant says
#     DPO    loss = - log sigmoid( beta [ (s_chosen - s_rejected) - (the same of the model before) ] )
#
# Read beside this: tinyqwen/train/chats.py, tinyqwen/train/sft.py, tinyqwen/train/dpo.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.config import Config
from tinyqwen.train import dpo, sft
from tinyqwen.train.chats import Example, answered, pack
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.reference import frozen
from tinyqwen.train.rollouts import Policy, likeliest
from tinyqwen.train.training import Training
from tinyqwen.weights import tree
from walkthrough.pictures import table

# %% [markdown]
# ## A language of a few words
# A conversation is one sequence: who speaks, what is said, the end of the turn. The user says any
# number; the assistant answers with the next one, plainly ("five .") or loudly ("five !").

# %%
NUMBERS = "zero one two three four five six seven eight nine".split()
WORDS = ["<end>", "user", "assistant", ".", "!", *NUMBERS]
ID = {word: number for number, word in enumerate(WORDS)}
config = Config(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(WORDS),
    tie_word_embeddings=True, initializer_range=0.3,
)  # fmt: skip
backend = get("numpy")


def prompt(number):
    return [ID[word] for word in ("user", NUMBERS[number], "<end>", "assistant")]


def answer(number, manner):
    return [ID[word] for word in (NUMBERS[(number + 1) % 10], manner, "<end>")]


example = answered(prompt(4), answer(4, "."))
table("token  learnt", *((WORDS[i], "yes" if learnt else "") for i, learnt in zip(example.ids, example.learnt_T)))

# %% [markdown]
# ## What is learnt, and what is only read
# By hand: of the 7 tokens 3 are learnt, so each counts 1/3, and the four of the prompt nothing. A
# model that holds them for 1/2, 1/4 and 1/2 likely pays (log 2 + log 4 + log 2) / 3 = 0.924.

# %%
loss, coefficient_N, _ = sft.lesson([example], 3).loss(np.log([1 / 2, 1 / 4, 1 / 2]))
print(f"loss {loss:.3f}, coefficients {coefficient_N.round(3)}")


def trained(tensors, stage, settings):
    """A model that went through all steps of a stage, and the steps' reports."""
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    run = Training(backend, config, tensors, start(backend, tensors), stage, settings)
    return tensors, [run.step() for _ in range(settings.steps)]


def says(tensors, number):
    """The likeliest answer; at most six words, in case that it does not stop."""
    policy = Policy(backend, config, tree(tensors), frozenset([ID["<end>"]]), len(WORDS),
                    lambda ids: " ".join(WORDS[i] for i in ids))  # fmt: skip
    return likeliest(policy, prompt(number), tokens=6)


masked = [answered(prompt(n), answer(n, manner)) for n in range(10) for manner in ".!"]
everything = [Example(one.ids, np.arange(7) > 0) for one in masked]
no_end = [Example(one.ids, one.learnt_T & (np.array(one.ids) != ID["<end>"])) for one in masked]
settings, models, losses = sft.Settings(steps=150, batch=20, lr=0.01, warmup=10, weight_decay=0.0), {}, {}
for name, examples in (("answers", masked), ("everything", everything), ("answers without <end>", no_end)):
    stage = sft.stage(sft.Conversations(examples, 99), settings)
    models[name], reports = trained(initial_weights(config, seed=1), stage, settings)
    losses[name] = reports[-1].loss

# %% [markdown]
# Whoever learns everything learns to guess the user, too. Which number the user says cannot be
# known: of the 6 tokens one costs log 10 for ever. And both manners of the answer came equally often:
# that costs log 2 a conversation.

# %%
floors = {"answers": np.log(2) / 3, "everything": (np.log(10) + np.log(2)) / 6, "answers without <end>": np.log(2) / 2}
table("learnt  loss  cannot fall below", *((name, f"{losses[name]:.1f}", f"{floors[name]:.1f}") for name in floors))
for name in ("answers", "answers without <end>"):
    said = says(models[name], 4).split()
    print(f"{name}: asked for what comes after four, it says {said[0]!r} and", "stops" if len(said) == 2 else "goes on")

# %% [markdown]
# ## Preferences
# Both manners are right; we prefer the quiet one. DPO takes pairs, and asks only how much likelier
# an answer *became*. Before the first step nothing has changed: h = 0 and the loss is log 2 = 0.693.

# %%
reference = frozen(backend, config, tree(models["answers"]))
pairs = [dpo.Pair(*(answered(prompt(n), answer(n, manner)) for manner in ".!")) for n in range(8)]  # never of 8 and 9
how = dpo.Settings(steps=30, batch=8, lr=0.0003, warmup=0, beta=0.5)
tensors, reports = trained(models["answers"], dpo.stage(dpo.Pairs(pairs, 99), how, reference), how)
first, last = reports[0], reports[-1]
print(f"first step: loss {first.loss:.3f}, margin {first.figures['margin']:.1f}")

# %% [markdown]
# Ask about eight, which no pair was about. And do too much of it: the pairs are told apart ever
# better, while *both* answers die out. DPO only wants the distance; watch what was chosen.

# %%
how = dpo.Settings(steps=40, batch=8, lr=0.001, warmup=0, beta=0.5)
spoilt, more = trained(models["answers"], dpo.stage(dpo.Pairs(pairs, 99), how, reference), how)
step, token_N, sequence_N = pack([answered(prompt(8), answer(8, manner)) for manner in ".!"])
log_p = [frozen(backend, config, tree(each))(step, token_N) for each in (models["answers"], tensors, spoilt)]
before, after, ruined = (np.exp(np.bincount(sequence_N, log_p_N)) for log_p_N in log_p)
table("after eight  before  DPO  too much of it",
      *((f"nine {manner}", *(f"{p:.1f}" for p in ps)) for manner, *ps in zip(".!", before, after, ruined)),
      ("pairs told apart", "", f"{last.figures['accuracy']:.0%}", f"{more[-1].figures['accuracy']:.0%}"))  # fmt: skip

# %% What we know now
assert all(loss < floors[name] + 0.2 for name, loss in losses.items())
assert len(says(models["answers"], 4).split()) == 2 and len(says(models["answers without <end>"], 4).split()) > 2
assert abs(first.loss - np.log(2)) < 1e-6 and last.figures["accuracy"] == 1
assert after[0] > 0.75 > before[0], "a manner was learnt, and not eight answers"
assert -last.figures["rejected"] > last.figures["chosen"], "what DPO mostly does is to lower what was rejected"
assert more[-1].figures["margin"] > last.figures["margin"] and ruined[0] < before[0]

# %%
# Exercise 1. Two conversations: 2 tokens to be learnt in one, 6 in the other. Their coefficients?
coefficient = ...
# assert np.allclose(coefficient, sft.lesson([answered([1], [2] * 2), answered([1], [2] * 6)], 8).loss(np.zeros(8))[1])

# %%
# Exercise 2. beta = 0.5. The chosen answer is twice as likely as it was, the other half. The loss?
answer_2 = ...
# assert np.allclose(answer_2, dpo.dpo(np.log([0.4, 0.1]), np.log([0.2, 0.2]), np.array([0, 1]), beta=0.5)[0])

# %%
# Exercise 3. Qwen's own style learns frames, too. At which places of `example` (from 0) is another <end>?
places = ...
# assert places == [n for n, word in enumerate(example.ids) if word == ID["<end>"] and not example.learnt_T[n]]
