# %% [markdown]
# # 24. Inside a trained model: which heads look things up?
# Goal: find the heads of the embedded model that copy, take them away, and see what it can no longer do.
#
#     a b c d a b ?            the text came before, so c comes next
#     previous-token head      looks at the token before its own:         share of key i - 1
#     induction head           looks behind the earlier copy of its own:  share of key j + 1, token j = token i
#
# An induction head needs a previous-token head below it: only that one told c's place "b came before me".
# Read beside this: tinyqwen/trace/attention_maps.py, tinyqwen/tiny/generators/lookup.py, tinyqwen/tiny/data.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends import get
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.generate import Running
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling
from tinyqwen.tiny import FOLDER
from tinyqwen.tiny.data import Encoder
from tinyqwen.tiny.training import examine, held_out
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.trace.attention_maps import attention_maps, attention_weights
from tinyqwen.trace.capture import capture
from tinyqwen.weights import tensor_shapes, tensors_of
from walkthrough.pictures import heat, table

checkpoint, backend, tokenizer = open_checkpoint(FOLDER, dtype="f32"), get("numpy"), Tokenizer(FOLDER)
config, encoder = checkpoint.config, Encoder(tokenizer)
tensors = tensors_of(checkpoint.weights, tensor_shapes(config))
L, H, K = config.num_hidden_layers, config.num_attention_heads, config.head_dim

# %% [markdown]
# ## A text that says everything twice
# Twenty letters by chance, and then the same twenty again. Nobody can know the first half. Of the second
# half all is known to who looks back.

# %%
period = 20
rng = np.random.default_rng(0)
segment = rng.permutation([tokenizer.encode(f" {letter}")[0] for letter in "abcdefghijklmnopqrstuvwxyz"])[:period]
ids = [*segment.tolist(), *segment.tolist()]


def maps_of(ids):
    """Who looks at whom: [L, H, T, S]."""
    maps = []
    for layer in range(L):
        running = Running(list(ids), KVCache(backend, config), Sampling(), context=99, max_new_tokens=1)
        steps = capture(backend, config, checkpoint.weights, [running], attention_weights(layer))
        maps.append(attention_maps(steps, layer)[0].weights_HTS)
    return np.stack(maps)


share_LHTS = maps_of(ids)
second = np.arange(period, 2 * period)
previous_LH = share_LHTS[:, :, second, second - 1].mean(axis=-1)
induction_LH = share_LHTS[:, :, second, second - period + 1].mean(axis=-1)

layers, heads = [f"layer {layer}" for layer in range(L)], [str(head) for head in range(H)]
print("share of the token before:")
heat(previous_LH, layers, heads)
print("\nshare of what followed the earlier copy:")
heat(induction_LH, layers, heads)

# %% [markdown]
# The rows tell the story: low layers say to each place what stood before it, and higher ones look for that.
# Nobody wrote this into the program. It was easier to learn than anything else that lowers the loss on repeats.
#
# ## The strongest one, at work
# Each row a token of the second half, each column a key. The line one beside the diagonal is induction.

# %%
layer, head = np.unravel_index(induction_LH.argmax(), induction_LH.shape)
print(f"layer {layer}, head {head}")
spelled = [tokenizer.decode([token]).strip() for token in ids]
heat(share_LHTS[layer, head, second[:10], :22], spelled[period : period + 10], spelled[:22])

# %% [markdown]
# ## Taken away
# Looking is not yet use. So take heads away: the columns of `o_proj` that read a head become zero, and nothing
# that it found reaches the residual stream. Then ask what is held out: needles, which need a look back, and
# facts about Qwen2, which need one only to say a model's name again.


# %%
def without(chosen):
    """The tensors, with these (layer, head) taken away."""
    changed = dict(tensors)
    for layer, head in chosen:
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        changed[name] = changed[name].copy()
        changed[name][:, head * K : (head + 1) * K] = 0
    return changed


def asked(chosen, task, count=40):
    """The share of held-out items that are answered exactly."""
    return examine(get("cpu", threads=1), config, without(chosen), encoder, held_out(task, count))


copying = [(layer, head) for layer, head in np.argwhere(induction_LH > 0.4).tolist()]
others = [(layer, head) for layer in range(L) for head in range(H) if (layer, head) not in copying and layer == L - 1]
chosen = {"all heads": [], "without those that copy": copying, "without the layer's others": others}
found = {name: [asked(heads, task) for task in ("pairs", "unseen")] for name, heads in chosen.items()}
print("those that copy:", *(f"layer {layer} head {head}," for layer, head in copying), "others:", len(others))
table("model  pairs  facts", *((name, *(f"{100 * share:.0f} %" for share in row)) for name, row in found.items()))

# %% [markdown]
# ## Particular to this model
# It learnt on texts of 256 tokens, and half of the first documents were repeats like ours. With needles alone it
# would not have got there: one looked-up word in a hundred gives nothing to learn from before both kinds of
# heads are there, and neither helps without the other. That is why skills of this kind appear suddenly.

# %% What we know now
assert induction_LH.max() > 0.5 and np.argmax(induction_LH.max(axis=1)) > 0, "induction needs a layer below"
assert found["all heads"][0] > 0.8
assert found["without those that copy"][0] < found["all heads"][0] / 2
assert np.allclose(share_LHTS.sum(axis=-1), 1, atol=1e-5)

# %%
# Exercise 1. At which key does a perfect induction head look from token 27 of our text (the first is 0)?
key = ...
# assert share_LHTS[layer, head, 27].argmax() == key

# %%
# Exercise 2. How many numbers does `without` set to zero for one head?
zeros = ...
# assert zeros == sum(int((without([(0, 0)])[name] == 0).sum() - (tensors[name] == 0).sum()) for name in tensors)

# %%
# Exercise 3. It does not look a fixed distance back. How far does it look in a text of period 12?
distance = ...
# assert distance == 27 - maps_of([*ids[:12], *ids[:12], *ids[:12]])[layer, head, 27, 13:].argmax() - 13
