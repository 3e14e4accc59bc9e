# %% [markdown]
# # 20. One kernel, three ways
# Goal: read the same operation as a formula, as a loop and as CUDA, and say what each of them knows about the machine.
#
#     y = x / sqrt(mean(x^2) + eps) * weight            RMSNorm, lesson 3
#
# This project has it three times: tinyqwen/blocks/rms_norm.py says what it is, backends/cpu/rms_norm.py
# and backends/cuda/rms_norm.py (with rms_norm.cu beside it) how a processor and a GPU do it fast. No GPU is
# needed here: tests/cuda_host/host.py lets the C++ compiler build CUDA for this processor, slowly and
# strictly. Without a compiler, what it would have shown is left out, with a word.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numba
import numpy as np

from backends import get
from tests.cuda_host.host import Module, missing
from tinyqwen.blocks.rms_norm import rms_norm

random, eps = np.random.default_rng(20), 1e-6
x_TD, weight_D = random.standard_normal((3, 100), dtype=np.float32), random.standard_normal(100, dtype=np.float32)

# %% [markdown]
# ## NumPy: what
# Whole arrays, no order, no place. Five operations, each of which reads and writes an array the size of
# x; nobody minds as long as it fits a cache. The formula is the truth for all that follows.

# %%
truth_TD = rms_norm(get("numpy"), x_TD, weight_D, eps=eps)
print("y[0, :3] =", truth_TD[0, :3].round(3), " and the mean square of x[0] is", round(float((x_TD[0] ** 2).mean()), 3))

# %% [markdown]
# ## Numba: in which order
# A loop over tokens, and two over channels: the sum must be known before the first y is. Nothing is
# written but the result. backends/cpu adds vectors of 16 numbers, and threads that share out the tokens.


# %%
@numba.njit
def by_loops(x_TD, weight_D, eps, y_TD):
    for t in range(len(x_TD)):
        squares = np.float32(0)
        for d in range(len(weight_D)):
            squares += x_TD[t, d] * x_TD[t, d]
        root = np.sqrt(squares / len(weight_D) + eps)
        for d in range(len(weight_D)):
            y_TD[t, d] = x_TD[t, d] / root * weight_D[d]


looped_TD = np.empty_like(x_TD)
by_loops(x_TD, weight_D, np.float32(eps), looped_TD)
print("loops and formula agree:", np.allclose(looped_TD, truth_TD, rtol=1e-5))

# %% [markdown]
# ## CUDA: who
# The text below is what *one thread* does; thousands run it at once and differ in their number only.
# - A **block** of threads takes a token (`blockIdx`), its threads every 64th channel (`threadIdx`):
#   neighbours read neighbouring numbers, which is how memory gives them at once (lesson 21).
# - Each has a part of the sum. **Shared memory** is a table that the block's threads have in common:
#   each writes its part, then half of them add the other half's, and so on: 6 rounds instead of 63 additions.
# - `__syncthreads()` is where all wait for all. Threads run in any order; without it, one reads what
#   another has yet to write. The one in the loop is left out on purpose, if `FORGET` says so.

# %%
text = """
extern "C" __global__ void norm_kernel(const float* x_TD, const float* weight_D, float* y_TD, int D, float eps) {
  __shared__ float part[64];
  const float* x_D = x_TD + blockIdx.x * D;
  float squares = 0;
  for (int d = threadIdx.x; d < D; d += 64) squares += x_D[d] * x_D[d];
  part[threadIdx.x] = squares;
  for (int half = 32; half; half /= 2) {
    if (!FORGET) __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  __syncthreads();
  float root = sqrtf(part[0] / D + eps);
  for (int d = threadIdx.x; d < D; d += 64) y_TD[blockIdx.x * D + d] = x_D[d] / root * weight_D[d];
}
"""


def by_blocks(order, forget=0):
    """The kernel's result, with threads in that order."""
    module = Module(f"constexpr int FORGET = {forget};\n{text}")
    module.order, y_TD = order, np.zeros_like(x_TD)
    arguments = x_TD, weight_D, y_TD, np.int32(100), np.float32(eps)  # the sizes that it declares, or it is refused
    module.get_function("norm_kernel")((3,), (64,), arguments)
    return y_TD


built, broken = {}, {}
if missing():
    print(f"measured: nothing: {missing()}")
else:
    for order in ("ascending", "descending", "random"):
        built[order], broken[order] = by_blocks(order), by_blocks(order, forget=1)
        wrong = [int((~np.isclose(y_TD, truth_TD)).sum()) for y_TD in (built[order], broken[order])]
        print(f"measured: {order:10} threads: {wrong[0]} of 300 numbers wrong, without the barrier {wrong[1]}")

# %% [markdown]
# Descending, the kernel without its barrier may even be right: thread 63 is always done before thread 31
# needs it. On a GPU such a mistake comes out right a thousand times and wrong in front of an audience. So
# every kernel here runs in several orders (tests/backends/cuda/test_decoder_layer.py), and once with each thread a
# real one, watched by a tool that sees two of them touch a number without a barrier in between.
#
# ## What each of them must know
# How many threads, and who does what, is written nowhere in the formula; in CUDA it is half of the text.
# That is why the formula comes first, and why it is what the others are tested against.

# %%
lines = {"formula": 2, "loops": 8, "CUDA": 14}
tree = [2**round for round in range(5, -1, -1)]  # additions that happen at once, round by round
print("lines:", lines, "  additions at once:", tree, "of", sum(tree))

# %% What we know now
assert np.allclose(looped_TD, truth_TD, rtol=1e-5)
assert sum(tree) == 63 and len(tree) == 6
assert all(np.allclose(y_TD, truth_TD, rtol=1e-5) for y_TD in built.values())
assert len({y_TD.tobytes() for y_TD in built.values()}) <= 1  # not a bit depends on the order
assert not built or len({y_TD.tobytes() for y_TD in broken.values()}) > 1  # here, it does

# %%
# Exercise 1. Which channels does thread 5 of a block work on, where D is 200 and a block has 64 threads?
channels = ...
# assert sorted(channels) == [d for d in range(200) if d % 64 == 5]

# %%
# Exercise 2. A block of 1024 threads adds up their parts in the same way. How many rounds does it need?
rounds = ...
# assert 2 ** (rounds - 1) < 1024 == 2**rounds

# %%
# Exercise 3. RMSNorm of T tokens reads x twice and writes y once. The second time x comes from the nearest
# cache. How many bytes must come from or go to memory, without the weights, in float32?
memory_bytes = ...  # a function of T and D
# assert (memory_bytes(1, 896), memory_bytes(512, 896)) == (7168, 3670016)
