# %% [markdown]
# # 9. Where the time goes
# Goal: predict how long prefill and decode take by counting, then measure, and explain the difference.
#
#     time >= bytes / (bytes a second)          what must be read and written: the memory's limit
#     time >= FLOPs / (FLOPs a second)          what must be computed: the arithmetic's limit
#
# The larger of the two is the *floor*; which one it is says what an operation is *bound* by. FLOPs
# divided by bytes is its *arithmetic intensity*. This picture is called the roofline. Read beside
# this: backends/meta.py, backends/tracing.py, tinyqwen/machine.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import dataclasses
import time

from backends import Cost, get, shape_only
from backends.tracing import Tracing, closed
from tinyqwen.kv_cache import KVCache
from tinyqwen.machine import Machine, measure
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import count_parameters, fill, random_weights, tree
from walkthrough.pictures import bars, table

# %% [markdown]
# ## Count first
# One token passes every matrix once: a multiply and an add for each parameter, and each parameter
# read once. So decode: FLOPs = 2 * parameters, bytes = 4 * parameters in float32. Qwen2-0.5B has
# 494 million: 988 MFLOP, 1.98 GB.
#
# Now by the model itself, on shapes alone: on the meta backend each operation says what it costs.


# %%
def planned(name, past, tokens):
    """The operations of a step of that many tokens behind `past` others: their names and costs. No data anywhere."""
    config, meta = SIZES[name].config(), get("meta")
    cache = KVCache(meta, config)
    cache.reserve(past + tokens)
    cache.length = past
    tracing = Tracing(meta, {})
    weights = tree(fill(config, lambda name, shape: shape_only(shape)))
    forward(tracing, config, weights, make_step([([1] * tokens, cache)]))
    return [(span.operation, span.cost) for span in closed(tracing.spans)]


def total(costs, operation=None):
    """FLOPs and bytes of a list of costs, or of one kind of operation in it."""
    chosen = [cost for name, cost in costs if operation in (None, name)]
    return sum(cost.flops for cost in chosen), sum(cost.read + cost.written for cost in chosen)


prefill, decode = planned("0.5B", 0, 512), planned("0.5B", 512, 1)
for says, costs in (("prefill of 512 tokens", prefill), ("decode of one token", decode)):
    flops, moved = total(costs)
    print(f"{says:22} {flops / 1e9:7.2f} GFLOP {moved / 1e9:6.2f} GB   intensity {flops / moved:6.2f} FLOP per byte")

# %% [markdown]
# ## Predict
# A toy machine, about a laptop: it reads 20 GB and computes 200 GFLOP a second. It needs 10 FLOPs
# per byte to be busy. Prefill has more than that: bound by compute. Decode has half a FLOP per
# byte: the arithmetic waits for the memory.

# %%
toy = Machine("toy", bytes_per_second=20e9, flops_per_second=200e9)
rows = []
for says, costs, tokens in (("prefill", prefill, 512), ("decode", decode, 1)):
    flops, moved = total(costs)
    whole = Cost(None, flops, moved, 0)
    seconds = toy.floor(whole)
    rows.append((says, f"{moved / 20e9:.3f} s", f"{flops / 200e9:.3f} s", toy.bound(whole), f"{tokens / seconds:.1f}"))
table("0.5B on the toy machine  bytes need  FLOPs need  bound  tokens a second, at best", *rows)

# %% [markdown]
# ## Who does the work?
# Nearly all is `linear`: so the whole art of speed is reading weights once and multiplying well.

# %%
kinds = list(dict.fromkeys(name for name, _ in decode if total(decode, name)[1] > 1e6))
print("decode, MB moved:")
bars({name: total(decode, name)[1] / 1e6 for name in kinds}, form=",.1f")
print("prefill of 512, GFLOP:")
bars({name: total(prefill, name)[0] / 1e9 for name in kinds}, form=",.1f")

# %% [markdown]
# ## Measure
# Two layers of the 0.5B and a small vocabulary, so that it takes a second. Guess first: how many
# times longer does a token take in decode than in prefill? The limits of this machine are measured,
# too. (What the floor cannot know: caches may hold some weights, and clocks change.)

# %%
config = dataclasses.replace(SIZES["0.5B"].config(), num_hidden_layers=2, layer_types=(), vocab_size=4096)
backend, weights = get("numpy"), tree(random_weights(config))
machine = measure(megabytes=64, size=768, rounds=3)


def seconds_of(past, tokens, rounds=5):
    """The best of some rounds: noise only ever slows down."""
    cache, times = KVCache(backend, config), []
    forward(backend, config, weights, make_step([([1] * max(past, 1), cache)]))
    for _ in range(rounds):
        cache.length = past
        start = time.perf_counter()
        forward(backend, config, weights, make_step([([1] * tokens, cache)]))
        times.append(time.perf_counter() - start)
    return min(times)


a_token_prefill, a_token_decode = seconds_of(0, 256) / 256, seconds_of(256, 1)
parameters = count_parameters(config)["total"]
floor = machine.floor(Cost(None, 2 * parameters, 4 * parameters, 0))
print(
    f"measured: reads {machine.bytes_per_second / 1e9:.1f} GB/s, computes {machine.flops_per_second / 1e9:.0f} GFLOP/s"
)
print(f"measured: a token takes {1e3 * a_token_prefill:.2f} ms in prefill, {1e3 * a_token_decode:.2f} ms in decode")
print(f"measured: decode's floor is {1e3 * floor:.2f} ms, {100 * floor / a_token_decode:.0f} % of the time it took")
print("a token is dearer in decode:", a_token_decode > a_token_prefill)

# %% What we know now
flops, moved = total(decode)
assert abs(flops / (2 * 494e6) - 1) < 0.05 and abs(moved / (4 * 494e6) - 1) < 0.05  # two FLOPs, four bytes
assert toy.bound(Cost(None, *total(decode), 0)) == "memory" and toy.bound(Cost(None, *total(prefill), 0)) == "compute"
assert total(decode, "linear")[1] > 0.95 * moved  # nearly all bytes are weights
assert a_token_decode > a_token_prefill  # prefill uses each weight that it reads 256 times

# %%
# Exercise 1. At best, how many tokens a second does Qwen2-7B decode on the toy machine? To 10 %.
# (7.6 billion parameters in float32, but of the embedding, 0.5 billion, it reads one row only.)
speed = ...
# assert abs(speed * toy.floor(Cost(None, *total(planned("7B", 0, 1)), 0)) - 1) < 0.1

# %%
# Exercise 2. In bfloat16, how many sequences can decode together and still be bound by memory on
# the toy machine? Count the weights only: for N sequences 2 * N FLOPs and 2 bytes a parameter.
N = ...
# assert [toy.bound(Cost(None, 2 * n, 2, 0)) for n in (N, N + 1)] == ["memory", "compute"]

# %%
# Exercise 3. Twice the prompt: which operation needs about four times the FLOPs, not twice? Its
# name.
name = ...
once, twice = prefill, planned("0.5B", 0, 1024)
# assert 3.5 * total(once, name)[0] < total(twice, name)[0] < 4.5 * total(once, name)[0]
