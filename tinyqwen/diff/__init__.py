"""Where two ways of running the same model first part, and whether that is rounding or a mistake.

Both sides run the same tokens, step by step: the prompt in one or several chunks, then decoded tokens, which are side
A's greedy choices on *both* sides (else one flipped token would make everything after it differ). Every operation's
result on side B is compared with side A's of the same place. The first one in order of execution that differs is where
to look: all later ones merely inherit.

Noise or bug? Two correct programs sum in different orders, so their float32 results differ in the last digits, and
after 24 layers in more than those. Run both in float64: rounding shrinks by nine orders (2^-24 to 2^-53), a mistake
stays as large as it was. That test needs no judgement, and it finds the place of a mistake even where float32 hid it.

A side has `start()` and `step(ids, see)`: it runs the next ids, calls `see(path, array)` for each result, and returns
the greedy choice after each id, as far as it knows.

    numpy                 a backend of `backends.NAMES`
    numpy:float64         the same with activations in float64
    numpy:bf16-weights    the same with its weights rounded to bfloat16
    goldens:FILE          what transformers computed once: a file of tests/goldens, model and prompt included
    transformers          what it computes now, from the same folder

Memory: side A's results of one step are kept, nothing else; a chunk of 64 tokens bounds them.

Source of the rule: TransformerLens, debugging_numerical_divergence.md.
"""

from tinyqwen.diff.compare import CHUNK, RTOL, Comparison, Difference, Report, compare, diff, difference
from tinyqwen.diff.sides import Golden, Model, Side, Transformers, make_side, random_model

__all__ = [
    "CHUNK", "RTOL", "Comparison", "Difference", "Golden", "Model", "Report", "Side", "Transformers", "compare", "diff",
    "difference", "make_side", "random_model",
]  # fmt: skip
