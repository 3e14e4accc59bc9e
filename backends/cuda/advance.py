"""The end of a recorded step: each sequence chooses a token, which becomes what the next step begins with."""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import SEQUENCES, address, launch, table
from backends.cuda.sample import choose

TEXT = np.dtype([("seen_S", np.uint64), ("S", np.int64)])  # as `struct Text` in advance.cu


def advance(backend, logits_NV, samplings, uniform_N, token_N, position_N, said_N, seen) -> None:
    """All on the device; the last four are written.

    samplings    per sequence how it chooses, see `tinyqwen.sampling`
    uniform_N    its dice
    token_N      its newest id, which stands at position_N
    said_N       what the host will be told: the id, or -1 where logits are no numbers
    seen         per sequence its ids, and behind them room for more
    """
    chosen_N = choose(backend, logits_NV, seen, samplings, uniform_N)
    sound_N = backend.xp.isfinite(logits_NV).all(axis=1)
    for n in range(0, len(seen), SEQUENCES):
        rows = slice(n, n + SEQUENCES)
        texts = table(TEXT, [(address(seen_S), len(seen_S)) for seen_S in seen[rows]])
        arguments = [x_N[rows] for x_N in (chosen_N, sound_N, token_N, position_N, said_N)]
        launch(backend, "advance_kernel", 1, len(seen[rows]), (*arguments, texts))
