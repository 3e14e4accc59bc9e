# %% [markdown]
# # 12. One matrix product, four speeds
# Goal: predict how fast a matrix product can be on this machine, get there in four steps, and know when to stop.
#
#     y[o] = sum over i of w[o, i] * x[i]
#
# Decoding is little else. Each weight is read once and used once, so the floor of lesson 9 is the
# memory's: bytes / (bytes a second). Read beside this: backends/cpu/simd, backends/cpu/tiles.py,
# backends/cpu/matrix_vector.py, backends/quantised.py. All times are your machine's; whatever else
# runs there slows them, and the limits that it measures of itself, too.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numba
import numpy as np
from ml_dtypes import bfloat16

from backends import Cost, get
from backends.cpu.probe import product_peak, read_bandwidth
from backends.cpu.simd import fma, load, sum_of, zeros
from backends.cpu.tiles import outer_f32, store_tile, tile
from backends.quantised import Quantised, quantise
from tinyqwen.blocks.linear import linear
from tinyqwen.machine import Machine, best
from walkthrough.pictures import table

cpu, random = get("cpu"), np.random.default_rng(12)


def repeated(array, times=16):
    """The same rows again and again. They begin where a cache line does: vectors that lie in two lines load slowly."""
    room = np.empty(times * array.nbytes + 64, np.uint8)
    rows = room[-room.ctypes.data % 64 :][: times * array.nbytes].view(array.dtype).reshape(-1, *array.shape[1:])
    rows.reshape(times, *array.shape)[...] = array
    return rows


# %% [markdown]
# ## Predict
# The 7B's `gate_proj` has 18944 x 3584 weights, in float32 272 MB: more than most caches hold. No
# kernel is faster than one that only reads. How many milliseconds will that be?

# %%
part_OI, x_TI = (repeated(random.standard_normal((n, 3584), dtype=np.float32), 1) for n in (1184, 64))
w_OI, exact_TO = repeated(part_OI), x_TI[:16].astype(np.float64) @ part_OI.T
bandwidth, peak = max(read_bandwidth(cpu.threads, 256, rounds=20)), max(product_peak(cpu.threads, rounds=20))
here, cost = Machine("here", bandwidth, peak), linear.cost_of(x_TI[:1], w_OI)
print(f"{cost.read / 1e6:.0f} MB to read, {cost.flops / 1e6:.0f} MFLOP to do")
print(f"measured: {cpu.threads} threads read {bandwidth / 1e9:.0f} GB/s, so at least {1e3 * here.floor(cost):.1f} ms")

# %% [markdown]
# ## Four versions
# - **v1**, the plain loop, compiled. A sum of floats depends on its order, which must be kept:
#   every addition waits for the one before, some four clock ticks.
# - **v2**, vectors: a register holds 16 numbers, and `fma` multiplies and adds all 16 at once.
# - **v3**, four sums: while one addition is waited for, three more are under way.
# - **v4**, threads that share the rows: the project's own `linear`, v3 otherwise.


# %%
@numba.njit
def v1(w_OI, x_I, y_O):
    for o in range(len(y_O)):
        total = np.float32(0)
        for i in range(len(x_I)):
            total += w_OI[o, i] * x_I[i]
        y_O[o] = total


@numba.njit
def v2(w_OI, x_I, y_O):
    for o in range(len(y_O)):
        total = zeros()
        for i in range(0, len(x_I) - 15, 16):
            total = fma(load(w_OI, (o, i)), load(x_I, i), total)
        y_O[o] = sum_of(total)


@numba.njit
def v3(w_OI, x_I, y_O):
    for o in range(len(y_O)):
        a, b, c, d = zeros(), zeros(), zeros(), zeros()
        for i in range(0, len(x_I) - 63, 64):
            a = fma(load(w_OI, (o, i)), load(x_I, i), a)
            b = fma(load(w_OI, (o, i + 16)), load(x_I, i + 16), b)
            c = fma(load(w_OI, (o, i + 32)), load(x_I, i + 32), c)
            d = fma(load(w_OI, (o, i + 48)), load(x_I, i + 48), d)
        y_O[o] = sum_of((a + b) + (c + d))


def v4(w_OI, x_I, y_O):
    y_O[:] = linear(cpu, x_I[None], w_OI)[0]


def error(y_TO):
    """How far from float64: root mean square of the difference, over that of the result."""
    return np.linalg.norm(y_TO - exact_TO[: len(y_TO)]) / np.linalg.norm(exact_TO[: len(y_TO)])


def rate(version, rows):
    """How many bytes of weights a second, of the first so many rows."""
    return w_OI[:rows].nbytes / best(7, lambda: version(w_OI[:rows], x_TI[0], y_O[:rows]))


errors, y_O = {}, np.empty(len(w_OI), np.float32)
for name, version in {"v1": v1, "v2": v2, "v3": v3, "v4": v4}.items():
    near, far = rate(version, 40), rate(version, len(w_OI))  # 0.6 MB, which a core's cache holds, and 272
    errors[name] = error(y_O[None, :1184])
    print(f"measured: {name} {near / 1e9:6.1f} GB/s from the cache, {far / 1e9:6.1f} from memory", end="")
    print(f": {far / bandwidth:4.0%} of the limit")

# %% [markdown]
# From the cache each idea pays: v3 as far as the processor can load two vectors for every fma, v4
# hardly, as 40 rows are too little to share. From memory v2 may already be as fast as v3: who waits
# for memory gains nothing from faster sums, and threads help only as far as one core alone cannot
# ask for enough. At the limit, stop. Then read less.
#
# ## Fewer bytes
# *bfloat16* is the upper half of a float32, with 8 of its 24 binary digits. *int8* and *int4* are
# whole numbers, and each 32 of them share a scale. By hand: if 127/128 is the largest of 32, it
# becomes 127; so the scale is 1/128, and 0.1 = 12.8/128 becomes 13. Stored is 128 more, which needs
# no sign. A weight costs 8 bits (or 4), and 16/32 for the scale.

# %%
group = quantise(np.float32([[127 / 128, -0.5, 0.1]]), 8)
print("stored:", *group.values.ravel()[:3], "  meaning:", *(f"{weight:.4f}" for weight in group.astype(np.float32)[0]))
formats, rows = {"f32": part_OI, "bf16": part_OI.astype(bfloat16)}, []
for name, part in (formats | {f"int{bits}": quantise(part_OI, bits) for bits in (8, 4)}).items():
    errors[name] = error(linear(cpu, x_TI[:1], part))
    if isinstance(part, Quantised):
        part = Quantised(part.bits, w_OI.shape, repeated(part.values), repeated(part.scales))
    else:
        part = repeated(part)
    rows.append((name, 8 * part.nbytes / part.size, f"{part.nbytes / 1e6:.0f}", f"{errors[name]:.1%}"))
    floor, seconds = here.floor(linear.cost_of(x_TI[:1], part)), best(7, lambda part=part: linear(cpu, x_TI[:1], part))
    print(
        f"measured: {name:4} floor {1e3 * floor:4.1f} ms, took {1e3 * seconds:.1f}: {floor / seconds:.0%} of the limit"
    )
table("weights  bits each  MB  error of y", *rows)

# %% [markdown]
# (Above 100 %? A cache held much of so few bytes, or the limit was measured in a bad moment.)
#
# ## Many tokens
# Prefill uses each weight T times: T times the FLOPs for hardly more bytes. From some T on the
# arithmetic takes longer than the reading, and the limit is FLOPs a second. v3, with two loads for
# each fma, cannot reach that one. A *tile* can: 16 rows by 16 tokens of sums, kept in registers. A
# step loads 16 weights and a number of each of 16 tokens, and does 256 multiply-adds with them:
# 8 for each number loaded, where v3 does half a one. (4 tokens fill a quarter of a tile: no gain.)


# %%
@numba.njit
def tiles(w_OI, x_It, y_Ot):
    for o in range(0, len(w_OI), 16):
        sums = tile(16, zeros())
        for i in range(len(x_It)):
            sums = outer_f32(sums, load(x_It, (i, 0)), w_OI, (o, i))  # sums[r] += x_It[i] * w_OI[o + r, i]
        store_tile(y_Ot, (o, 0), sums)


x_It, y_Ot, flops = repeated(x_TI[:16].T, 1), np.empty((1184, 16), np.float32), 2 * 16 * part_OI.size
vectors = best(5, lambda: [v3(part_OI, x_I, y_O[:1184]) for x_I in x_TI[:16]])
together = best(5, lambda: tiles(part_OI, x_It, y_Ot))
errors["tiles"] = error(y_Ot.T)
print(f"measured: 16 tokens on one core: v3 {flops / vectors / 1e9:.0f} GFLOP/s, tiles {flops / together / 1e9:.0f}")
print(f"measured: all cores at best {peak / 1e9:.0f} GFLOP/s, {peak / bandwidth:.1f} FLOPs for each byte read")
quarter_OI = w_OI[: len(w_OI) // 4]
costs = {T: linear.cost_of(x_TI[:T], quarter_OI) for T in (1, 4, 16, 64)}
for T, cost in costs.items():
    seconds = best(5, lambda T=T: linear(cpu, x_TI[:T], quarter_OI))
    print(f"T = {T:2}: {cost.flops / (cost.read + cost.written):4.1f} FLOPs a byte")
    print(f"measured: {1e3 * seconds / T:4.1f} ms a token, {cost.flops / seconds / 1e9:5.0f} GFLOP/s", end="")
    print(f": {here.floor(cost) / seconds:4.0%} of the limit, {here.bound(cost)}")

# %% What we know now
assert max(errors[name] for name in ("v1", "v2", "v3", "v4", "f32", "tiles")) < 1e-5
assert errors["v3"] < errors["v1"]  # 64 short sums are not only faster than a long one: they round less
assert errors["bf16"] < 0.003 < errors["int8"] < 0.01 < 0.05 < errors["int4"] < 0.1
assert [row[1] for row in rows] == [32, 16, 8.5, 4.5]
assert [round(2 * costs[T].flops / costs[T].read) for T in costs] == [1, 4, 16, 63]  # T / 2 a byte

# %%
# Exercise 1. Of 1001 columns v2 forgets the last 9. Write `whole`, a v2 that does not: simd has
# `load_part(array, index, count)`, which loads the first `count` of 16 numbers, and zeros behind.
whole, y_O = ..., np.zeros(3, np.float32)
# assert whole(w_OI[:3, :1001], x_TI[0, :1001], y_O) or np.allclose(y_O, w_OI[:3, :1001] @ x_TI[0, :1001], atol=1e-3)

# %%
# Exercise 2. A machine reads 50 GB and computes 1000 GFLOP a second. From how many tokens on is a
# product with int4 weights bound by compute there? (Count the bytes of the weights only.)
another, work = Machine("another", 50e9, 1000e9), lambda tokens: Cost(None, 2 * tokens, 4.5 / 8, 0)
T = ...
# assert [another.bound(work(tokens)) for tokens in (T - 1, T)] == ["memory", "compute"]

# %%
# Exercise 3. A group of int8: its weights mean 0.01 * (w_i - 128), its token's numbers 0.5 * x_i.
# Write `dot` of (w_i, x_i) in int32, without the scales: they come last. (A byte - 128 is a byte!)
w_i, x_i, dot = random.integers(1, 256, 32, np.uint8), random.integers(-127, 128, 32, np.int8), ...
# assert dot(w_i, x_i).dtype == np.int32 and np.isclose(0.005 * dot(w_i, x_i), 0.01 * (w_i - 128.0) @ (0.5 * x_i))
