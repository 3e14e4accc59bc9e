"""YaRN: texts longer than a model was trained on, by slowing down the pairs of RoPE that would get lost.

    turns[i]   = original / wavelength[i]                 how often pair i goes round within the trained context
    ramp[i]    = 0 where turns > beta_fast (32),  1 where turns < beta_slow (1),  a straight line over i between them
    freq'[i]   = freq[i] (1 - ramp[i]) + freq[i] / factor * ramp[i]
    q . k      is multiplied by m^2,   m = 0.1 ln(factor) + 1         (m = 1.139 for factor 4)

A pair that never finished a turn in training meets angles beyond the trained context that it has never seen: it is
slowed down by the factor, so that the long text has the angles of the short one (interpolation). A pair that went round
often has seen all angles, and tells neighbours apart, which slowing would blur: it stays (extrapolation). And over more
keys softmax gets flatter, which m, YaRN's temperature, mends. It is cheapest in the tables: longer cos and sin make
longer queries and keys.

Four traps that changed models unnoticed:
* **Static.** Frequencies and m hold for every text, short ones too. A config without `rope_scaling` does better there.
* **m** belongs to q and to k. An engine that forgets it, or takes it once, runs fluently and finds less.
* **original** is the trained context, not the stretched one; from a wrong one follows another ramp.
* **The line** runs over i, as in the authors' code and everywhere since; the text of the paper has it over turns.

Qwen2 was trained at 32,768 and is published for 131,072 with factor 4: of the 64 pairs of a head of 128, the first 24
stay, those from 40 on go at a quarter of their speed.

Source: Peng et al. 2023, "YaRN", section 3; transformers, modeling_rope_utils.py, _compute_yarn_parameters.
"""

import math


def slowed(backend, frequency_Kh, *, theta, scaling):
    """RoPE's frequencies, radians a token, for texts `scaling.factor` times as long as in training.

    >>> import numpy as np; from backends import get; from tinyqwen.config import RopeScaling
    >>> frequency_Kh = np.float32([1, 0.1, 0.01, 0.001])                       # K = 8, theta 10,000
    >>> slowed(get("numpy"), frequency_Kh, theta=1e4, scaling=RopeScaling(4, 2048)) / frequency_Kh
    array([1.   , 1.   , 0.625, 0.25 ], dtype=float32)
    """
    xp, Kh = backend.xp, len(frequency_Kh)
    low, high = correction_range(2 * Kh, theta, scaling)
    pair_Kh = xp.arange(Kh).astype(backend.dtype)
    ramp_Kh = xp.clip((pair_Kh - low) / (high - low), 0, 1)
    return frequency_Kh * (1 - ramp_Kh) + frequency_Kh / scaling.factor * ramp_Kh


def correction_range(head_dim, theta, scaling):
    """The pairs between which frequencies change from untouched to divided by the factor; fractions, unless `truncate`.

    >>> from tinyqwen.config import RopeScaling
    >>> correction_range(128, 1e6, RopeScaling(4, 32768)), correction_range(64, 1e6, RopeScaling(4, 32768))
    ((23, 40), (11, 20))
    """

    def pair_that_turns(times):  # wavelength[i] = 2 pi theta^(2i / K) = original / times, solved for i
        wavelength = scaling.original_max_position_embeddings / times
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)  # K - 1, although pairs end at K/2 - 1: so it is published
    return low, high + 0.001 if low == high else high  # a step is a very steep ramp


def attention_factor(scaling):
    """YaRN's m, by which queries and keys are multiplied, each.

    >>> from tinyqwen.config import RopeScaling
    >>> [round(attention_factor(RopeScaling(factor, 32768)), 4) for factor in (1, 2, 4)]
    [1.0, 1.0693, 1.1386]
    """

    def growing(weight):
        return 0.1 * weight * math.log(scaling.factor) + 1

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale is not None:
        return growing(scaling.mscale) / growing(scaling.mscale_all_dim)
    return growing(1)
