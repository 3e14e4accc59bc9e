# %% [markdown]
# # 16. A gradient by hand
# Goal: find how the loss depends on every weight, first by wiggling it, then by the chain rule, and learn with that.
#
#     slope    = ( loss(w + h) - loss(w - h) ) / 2h             wiggle one weight: two runs of the model
#     gradient = the slopes of all weights                      the chain rule: two runs in all
#
# A model learns by small steps downhill. Which way is down? Ask each weight: if you were a little
# larger, would the loss rise? Read beside this: backends/gradient.py, tinyqwen/blocks/cross_entropy.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import Backend, get
from backends.gradient import Gradient
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.blocks.linear import add, linear
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import adamw, start
from tinyqwen.weights import tree
from walkthrough.pictures import bars, table

double = Backend(np, dtype=np.float64)  # wiggling by 0.00001 needs more digits than float32 has
np.set_printoptions(precision=3, suppress=True)


def slope(loss, array, at, h=1e-5):
    """Wiggle one number of the array, and see what the loss does."""
    keep, found = array[at], []
    for array[at] in (keep + h, keep - h):
        found.append(loss())
    array[at] = keep
    return (found[0] - found[1]) / (2 * h)


# %% [markdown]
# ## The end: three words
# A model gives three words the logits log 2, log 1, log 1: probabilities 1/2, 1/4, 1/4. The second
# word comes. Its log-probability is log 1/4. How should the logits change to raise it?
#
#     d log p[word] / d logits = (1 for the word that came, 0 for the others) - probabilities
#
# By hand: (0, 1, 0) - (1/2, 1/4, 1/4) = (-0.5, 0.75, -0.25). Up with what came, down with the rest,
# each by as much as it was wrongly believed. The three add up to 0.

# %%
logits_NV, came_N = np.log([[2.0, 1, 1]]), np.array([1])
wiggled = [slope(lambda: log_probability(double, logits_NV, came_N)[0], logits_NV, (0, v)) for v in range(3)]
by_rule_NV, _ = log_probability.gradient_of(double, np.ones(1), logits_NV, came_N)
print("wiggled:", np.array(wiggled), "  by the rule:", by_rule_NV[0])
assert np.allclose(wiggled, [-0.5, 0.75, -0.25]) and np.allclose(by_rule_NV, wiggled)

# %% [markdown]
# ## One step back: the chain rule
# The logits came from a matrix, logits = W x. If logit o should rise by d[o], then weight W[o, i]
# helps with d[o] * x[i], and input x[i] with the sum of d[o] * W[o, i] over all o. Each operation
# needs one such rule: given d of its *result*, what is d of its *arguments*? See `@linear.gradient`.

# %%
x_TI, weight_OI = np.array([[1.0, -2]]), np.array([[0.3, 0.1], [0.2, 0.4], [-0.5, 0.6]])
d_x_TI, d_weight_OI, _ = linear.gradient_of(double, by_rule_NV, x_TI, weight_OI)
print("d x =", d_x_TI[0], "  d W[1] =", d_weight_OI[1], "= 0.75 * x")

# %% [markdown]
# ## A tape
# `Gradient` stands in the door that every operation passes, writes down which ran, and goes back
# through the list. What was used twice gets both shares: y = x + x has slope 2.

# %%
x = np.array([[1.0, 2]])
tape = Gradient(double, {"x": x})
y = add(tape, x, x)
print("on the tape:", [call.operation.name for call in tape.tape])
tape.backward(y, np.ones_like(y))
print("d x =", tape.gradients["x"][0])

# %% [markdown]
# ## A whole model
# The same tape around the unchanged `forward`: once there and once back, for *every* weight's slope.

# %%
config = Config(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, vocab_size=12)
tensors = {name: tensor.astype(np.float64) for name, tensor in initial_weights(config, seed=1).items()}
ids = [3, 1, 4, 1, 5, 9, 2, 6]
step, next_N = make_step([(ids[:-1], None)], all_logits=True), np.array(ids[1:])
tape = Gradient(double, tensors)
log_p_N = log_probability(tape, forward(tape, config, tree(tensors), step), next_N)
remembered = len(tape.tape)
tape.backward(log_p_N, np.full(7, -1 / 7))  # the loss is the mean of -log p


def loss():
    return -log_probability(double, forward(double, config, tree(tensors), step), next_N).mean()


rows = []
for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight", "model.norm.weight"):
    at = (1, 2)[: tensors[name].ndim]
    rows.append((f"{name}{list(at)}", f"{slope(loss, tensors[name], at):.4f}", f"{tape.gradients[name][at]:.4f}"))
    assert rows[-1][1] == rows[-1][2]
table("weight  wiggled  tape", *rows)
count = sum(tensor.size for tensor in tensors.values())
print(f"{remembered} operations remembered; wiggling all {count} weights would take {2 * count} runs")

# %% [markdown]
# ## Downhill
# Now a step against the gradient, again and again. AdamW chooses how far each weight goes. The
# model begins by guessing (12 words: log 12 = 2.48) and learns the line by heart.

# %%
backend, curve = get("numpy"), {}
tensors = initial_weights(config, seed=1)
weights, state, tape = tree(tensors), start(backend, tensors), Gradient(backend, tensors)
for number in range(41):
    log_p_N = log_probability(tape, forward(tape, config, weights, step), next_N)
    if number % 8 == 0:
        curve[f"step {number:2}"] = float(-log_p_N.mean())
    tape.backward(log_p_N, np.full(7, -1 / 7, np.float32))
    adamw(backend, tensors, tape.gradients, state, lr=0.01)
    tape.clear()
bars(curve, form=".2f")

# %% What we know now
assert abs(curve["step  0"] - np.log(12)) < 0.1, "a model that knows nothing finds all words as likely"
assert curve["step 40"] < 0.1 < curve["step 16"]

# %%
# Exercise 1. Five words have the logits 0, and the first one comes. The gradient of its
# log-probability? (All five numbers.)
answer = ...
# assert np.allclose(answer, log_probability.gradient_of(double, np.ones(1), np.zeros((1, 5)), np.array([0]))[0][0])

# %%
# Exercise 2. z = (x + x) + (x + x), made of one `add` of x and x, and one of its result with itself.
# The slope of each number of z by that of x?
times = ...
# assert times == slope(lambda: add(double, add(double, x, x), add(double, x, x))[0, 0], x, (0, 0)).round(6)

# %%
# Exercise 3. Write the gradient of y = x * x, element by element, as an operation would state it.
square_gradient = lambda d_out, x: ...  # noqa: E731
# assert np.allclose(square_gradient(np.array([1.0, 10]), np.array([3.0, -2])), [6, -40])
