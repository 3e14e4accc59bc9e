# %% [markdown]
# # 1. One token through the model
# Goal: follow one token through the whole model, line by line, and see the shape after every line.
#
# A language model answers one question: given these tokens, which token comes next?
#
#     id --embedding--> x --attention, feed-forward (L times)--> x --norm--> x --head--> logits
#
# x is the *residual stream*: two parts of each layer read it, and add. Read on: tinyqwen/model.py

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import dataclasses

import numpy as np

from backends import Wrapper, get
from tinyqwen.blocks.attention import attend
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope, rope_tables
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.config import Config
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import count_parameters, random_weights, tree
from walkthrough.pictures import table

# %% [markdown]
# ## A model small enough to print
# The letters are those of tinyqwen/config.py. Our weights are dice, but every part is there.

# %%
config = Config(
    hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=4, intermediate_size=40, vocab_size=50,
    num_hidden_layers=1,
)  # fmt: skip
backend, weights = get("numpy"), tree(random_weights(config, seed=1, scale=0.3))
real = SIZES["0.5B"].config().letters
table("letter  here  in Qwen2-0.5B", *((letter, size, real[letter]) for letter, size in config.letters.items()))


# %% [markdown]
# ## By hand
# One token, id 7, at position 0. Names end in their axes' letters: x_TD is T tokens of D numbers.


# %%
def show(name, array, says):
    print(f"{name:10} {'x'.join(map(str, array.shape)):8} {says}")


x_TD = take_rows(backend, weights.embed_tokens.weight, np.array([7]))
show("x_TD", x_TD, "the token's vector: row 7 of the embedding table")
cos_TKh, sin_TKh = rope_tables(backend, np.array([0]), head_dim=config.head_dim, theta=config.rope_theta)

layer = weights.layers[0]
h_TD = rms_norm(backend, x_TD, layer.input_layernorm.weight, eps=config.rms_norm_eps)
show("h_TD", h_TD, "a copy, brought to loudness 1; the stream itself stays as it is")

q, k, v = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
q_THK = linear(backend, h_TD, q.weight, q.bias).reshape(1, 6, 4)
k_TGK = linear(backend, h_TD, k.weight, k.bias).reshape(1, 2, 4)
v_TGK = linear(backend, h_TD, v.weight, v.bias).reshape(1, 2, 4)
show("q_THK", q_THK, "six queries: what do I look for?  (q, k, v have biases: particular to Qwen2)")
show("k_TGK", k_TGK, "but two keys: what can I be found by?")
show("v_TGK", v_TGK, "and two values: what do I tell those who look at me?")

q_THK, k_TGK = rope(backend, q_THK, cos_TKh, sin_TKh), rope(backend, k_TGK, cos_TKh, sin_TKh)
out_THK = attend(backend, q_THK, k_TGK.swapaxes(0, 1), v_TGK.swapaxes(0, 1))
show("out_THK", out_THK, "what each head found; with one token to look at, its own value")
x_TD = add(backend, x_TD, linear(backend, out_THK.reshape(1, 24), layer.self_attn.o_proj.weight))
show("x_TD", x_TD, "the stream, with what attention added")

h_TD = rms_norm(backend, x_TD, layer.post_attention_layernorm.weight, eps=config.rms_norm_eps)
gate_TF = linear(backend, h_TD, layer.mlp.gate_proj.weight)
up_TF = linear(backend, h_TD, layer.mlp.up_proj.weight)
show("gate_TF", gate_TF, "wider inside: a gate for each number of up_TF, which has the same shape")
x_TD = add(backend, x_TD, linear(backend, swiglu(backend, gate_TF, up_TF), layer.mlp.down_proj.weight))
show("x_TD", x_TD, "the stream, with what the feed-forward part added")
x_TD = rms_norm(backend, x_TD, weights.norm.weight, eps=config.rms_norm_eps)
logits_TV = linear(backend, x_TD, weights.lm_head.weight)
show("logits_TV", logits_TV, f"a number for each id of the vocabulary; the largest is that of id {logits_TV.argmax()}")

# %% [markdown]
# ## The door
# `forward` is the model that everybody runs. Its operations all pass through one method,
# `Backend.run`: the door. Who stands there sees everything. Read next: backends/interface.py.

# %%
step = make_step([([7], None)])
assert np.allclose(forward(backend, config, weights, step), logits_TV)  # our lines are the model's lines


class Watching(Wrapper):
    """Notes each operation, indented by how many others it runs inside of."""

    def __init__(self, inner):
        super().__init__(inner)
        self.depth, self.lines = 0, []

    def run(self, operation, arrays, settings, door=None):
        at, self.depth = len(self.lines), self.depth + 1
        out = super().run(operation, arrays, settings, door)
        self.depth -= 1
        shape = "x".join(map(str, getattr(out, "shape", ("a pair",))))  # cos and sin; keys and values
        self.lines.insert(at, f"{'    ' * self.depth + operation.name:24} {shape}")
        return out


watching = Watching(backend)
forward(watching, config, weights, step)
print(*watching.lines, sep="\n")


def count_operations(layers):
    """How many operations pass the door for one token in a model of that many layers."""
    deeper, watching = dataclasses.replace(config, num_hidden_layers=layers, layer_types=()), Watching(backend)
    forward(watching, deeper, tree(random_weights(deeper)), step)
    return len(watching.lines)


# %% What we know now
assert x_TD.shape == (1, 24) and logits_TV.shape == (1, 50)  # the stream is D wide, the logits V
assert len(watching.lines) == count_operations(1)  # whoever stands in the door misses nothing
assert count_parameters(config)["total"] == sum(array.size for array in random_weights(config).values())

# %%
# Exercise 1. In the listing, count the operations outside of the layer, and those of the layer
# (itself included). How many pass in a model of 24 layers?
operations = ...
# assert operations == count_operations(24)

# %%
# Exercise 2. With one token to look at, its weight is 1. Six heads share two values, three heads to
# each. Make out_THK from v_TGK, with one function of NumPy.
found_THK = ...
# assert np.allclose(found_THK, out_THK)

# %%
# Exercise 3. Count this model's parameters by hand, with the letters: the table, V by D, and a head
# alike; q, k and v with biases; o; three feed-forward matrices; three norms.
parameters = ...
# assert parameters == count_parameters(config)["total"]
