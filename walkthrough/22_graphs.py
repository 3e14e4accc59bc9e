# %% [markdown]
# # 22. Where a launch goes, and what a graph saves
# Goal: see why a small model keeps a large GPU waiting, what recording a step changes, and what it asks of the code.
#
#     host      launch launch launch launch ...         one by one, some microseconds each
#     device           | work  | work  | work ...       never before it was launched, never two at a time
#
# No GPU is needed here: what a kernel must read is known, and time is a matter of adding up.
# Read beside this: backends/cuda/graph.py, tinyqwen/recorded.py.

# %%
import sys

sys.path.insert(0, ".")  # the repository's root, so that nothing need be installed;
sys.path.insert(1, "..")  # the same, seen from a notebook in a folder of the repository

import numpy as np

from backends.tracing import closed
from tinyqwen.formats import shape_weights
from tinyqwen.plan import on_shapes
from tinyqwen.sizes import SIZES
from walkthrough.pictures import table

READ = 4.3e12  # bytes a second: what was measured as copying on an H200
PYTHON, NODE = 6.0, 1.3  # microseconds: a launch from Python; from one kernel of a graph to the next (published: H100)


# %% [markdown]
# ## A token is a list of launches
# The unchanged model runs on shapes alone: each operation with a cost is a launch, and takes its bytes / bandwidth.


# %%
def launches(size):
    """Microseconds of each launch of one token, behind 1000 others, in bfloat16."""
    config = SIZES[size].config()
    spans = on_shapes(config, shape_weights(config, "bf16"), 1, 1000).spans
    return [(span.operation, 1e6 * (span.cost.read + span.cost.written) / READ) for span in closed(spans) if span.cost]


steps = {size: launches(size) for size in ("0.5B", "7B")}
table(
    "model  launches  us of reading",
    *[(size, len(step), f"{sum(us for _, us in step):.0f}") for size, step in steps.items()],
)

# %% [markdown]
# ## Who waits for whom
# The device starts a kernel when it has been launched and the one before is done. Whoever is slower sets the pace.


# %%
def timeline(work, launch, gap):
    """When the device is done, in microseconds: each launch takes the host `launch`, each change of kernel `gap`."""
    done = 0.0
    for n, us in enumerate(work, 1):
        done = max(n * launch, done + gap) + us
    return done


small, large = ([us for _, us in steps[size]] for size in ("0.5B", "7B"))
count = 5 * 24  # the same bytes in five launches a layer
fused = [sum(small[:-1]) / count] * count + small[-1:]
ways = {
    "0.5B, an operation a launch": timeline(small, PYTHON, NODE),
    "0.5B, five launches a layer": timeline(fused, PYTHON, NODE),
    "0.5B, those in one graph": PYTHON + timeline(fused, 0, NODE),
    "7B, an operation a launch": timeline(large, PYTHON, NODE),
    "7B, in one graph": PYTHON + timeline(large, 0, NODE),
}
shares = [sum(large if way.startswith("7B") else small) / us for way, us in ways.items()]
table("way  us a token  reading", *[(way, f"{us:.0f}", f"{s:.0%}") for (way, us), s in zip(ways.items(), shares)])

# %% [markdown]
# The 7B hardly notices: its kernels are longer than a launch. The 0.5B is all launches. That is arithmetic, not a
# measurement: `python -m tinyqwen.bench.gpu_check graphs decode` measures both on a GPU.
#
# ## A graph remembers numbers
# What is recorded is calls with their arguments as they were. Here is a recorder for NumPy, and a step that is wrong.


# %%
class Recorder(list):
    """Remembers calls with their arguments, and does them again."""

    def __call__(self, function, *arguments):
        self.append((function, arguments))

    def replay(self):
        for function, arguments in self:
            function(*arguments)


cache_S, position = np.zeros(6, int), 2
baked = Recorder()
baked(cache_S.__setitem__, position, 7)  # the number 2 is in the recording
for position in (2, 3, 4):  # noqa: B007
    baked.replay()
once_S = cache_S.copy()

# %% [markdown]
# Three steps, and one place written. What changes must lie in memory, and a step's last act is to change it.

# %%
cache_S[:], position_1 = 0, np.array([2])
read = Recorder()
read(lambda: cache_S.__setitem__(position_1[0], 7))  # the memory is in the recording, not the number in it
read(lambda: position_1.__iadd__(1))
for _ in range(3):
    read.replay()
table("recorded  three replays write", ("the number 2", once_S), ("where it lies", cache_S))

# %% [markdown]
# ## The host runs ahead
# The host must see each token. If it waits before it launches the next step, the device stands still. If it launches
# first, one step too many runs at the end: no harm, it writes behind the cache's end, which is the host's to move.


# %%
def tokens_per_second(step, look, ahead):
    """step: us on the device; look: us of the host's part."""
    return 1e6 / (max(step, look) if ahead else step + look)


step = ways["0.5B, those in one graph"]
waits, runs = (f"{tokens_per_second(step, 60, ahead):,.0f}" for ahead in (False, True))
table("the host  tokens/s if it needs 60 us", ("reads, then launches", waits), ("launches, then reads", runs))

# %% What we know now
assert len(steps["0.5B"]) > 300 and sum(small) < 300  # more launches than microseconds
assert ways["0.5B, an operation a launch"] > 2.5 * ways["0.5B, those in one graph"]
assert ways["7B, an operation a launch"] < 1.2 * ways["7B, in one graph"]
assert once_S.tolist() == [0, 0, 7, 0, 0, 0] and cache_S.tolist() == [0, 0, 7, 7, 7, 0]

# %%
# Exercise 1. From how many microseconds a kernel on does launching from Python cost nothing but the gaps?
enough = ...
# assert timeline([enough] * 100, PYTHON, NODE) < PYTHON + 100 * (enough + NODE) + 1e-6 and enough < PYTHON

# %%
# Exercise 2. A recorded step adds the token to a sum. Write it so that three replays of tokens 1, 2, 3 give 6.
token_1, sum_1, adding = np.array([0]), np.array([0]), Recorder()
adding(...)
# assert [(token_1.fill(n), adding.replay()) for n in (1, 2, 3)] and sum_1[0] == 6

# %%
# Exercise 3. The host needs 500 us to show a token, and a step takes 400. How many tokens a second, running ahead?
speed = ...
# assert speed == tokens_per_second(400, 500, ahead=True)
