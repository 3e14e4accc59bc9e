"""RoPE: rotary position embedding. A position is not added to a token; its query and key are turned by it.

    angle[t, i] = position[t] * theta^(-2i / K)          i = 0 .. K/2 - 1
    (a, b) -> (a cos - b sin, a sin + b cos)              for the pair a = x[i], b = x[i + K/2]

The dot product of a turned query and a turned key depends on the *difference* of their positions only, so attention
learns distances. Low i turn fast (one radian a token), high i slowly (with theta 1e6 and K = 64, once in 4 million).

Two traps that broke many ports:
* **Pairing.** Qwen2 pairs i with i + K/2 ("half-split"). The paper and llama2.c pair 2i with 2i + 1. Both are the same
  mathematics with the rows of q_proj and k_proj in another order; mixing them gives fluent nonsense after ~20 tokens.
* **Precision.** Angles are float32 products, as the models were trained: bfloat16 turns position 257 into 256.

Qwen2 uses theta = 1,000,000 (Llama 2: 10,000), for long contexts. Keys are rotated before they are cached. For texts
longer than those it was trained on, YaRN changes the tables, see `yarn.py`.

Source: Su et al. 2021, "RoFormer", section 3.2; transformers, Qwen2RotaryEmbedding and apply_rotary_pos_emb.
"""

from backends.interface import Cost, nbytes, operation, shape_only
from tinyqwen.blocks.yarn import attention_factor, slowed


@operation
def rope_tables(backend, position_T, *, head_dim, theta, scaling=None):
    """cos and sin of every token's angles, one table for all heads and layers: cos_TKh, sin_TKh.

    position_T   each token's place in its own sequence, counted from 0
    scaling      `tinyqwen.config.RopeScaling`: YaRN's other frequencies, and tables that make vectors longer

    >>> import numpy as np; from backends import get
    >>> cos_TKh, sin_TKh = rope_tables(get("numpy"), np.array([0, 1]), head_dim=4, theta=100.0)
    >>> sin_TKh.round(4)
    array([[0.    , 0.    ],
           [0.8415, 0.0998]], dtype=float32)
    """
    xp, dtype = backend.xp, backend.dtype
    exponent_Kh = xp.arange(0, head_dim, 2).astype(dtype) / head_dim
    frequency_Kh = 1 / xp.power(dtype.type(theta), exponent_Kh)
    if scaling is not None:
        frequency_Kh = slowed(backend, frequency_Kh, theta=theta, scaling=scaling)
    angle_TKh = xp.asarray(position_T).astype(dtype)[:, None] * frequency_Kh
    if scaling is None:
        return xp.cos(angle_TKh), xp.sin(angle_TKh)
    m = attention_factor(scaling)
    return m * xp.cos(angle_TKh), m * xp.sin(angle_TKh)


@rope_tables.cost
def _(position_T, *, head_dim, theta, scaling=None):
    T, Kh = len(position_T), head_dim // 2
    flops = (3 if scaling is None else 5) * T * Kh  # product, cosine, sine; and their products with m
    table_TKh = shape_only((T, Kh))
    return Cost((table_TKh, table_TKh), flops=flops, read=position_T.nbytes, written=2 * table_TKh.nbytes)


@operation
def rope(backend, x_TNK, cos_TKh, sin_TKh):
    """Turn every head's vector by its token's angles. N is the number of heads: H for queries, G for keys.

    >>> import numpy as np; from backends import get
    >>> quarter_turn = np.float32([[0]]), np.float32([[1]])          # cos and sin of 90 degrees, one pair
    >>> rope(get("numpy"), np.float32([[[3, 4]]]), *quarter_turn)
    array([[[-4.,  3.]]], dtype=float32)
    """
    Kh = cos_TKh.shape[-1]
    cos_T1Kh, sin_T1Kh = cos_TKh[:, None], sin_TKh[:, None]  # the same angles for every head
    a_TNKh, b_TNKh = x_TNK[..., :Kh], x_TNK[..., Kh:]
    out_TNK = backend.xp.empty_like(x_TNK)
    out_TNK[..., :Kh] = a_TNKh * cos_T1Kh - b_TNKh * sin_T1Kh
    out_TNK[..., Kh:] = b_TNKh * cos_T1Kh + a_TNKh * sin_T1Kh
    return out_TNK


@rope.cost
def _(x_TNK, cos_TKh, sin_TKh):
    out_TNK = shape_only(x_TNK.shape, x_TNK.dtype)
    return Cost(out_TNK, flops=3 * x_TNK.size, read=nbytes(x_TNK, cos_TKh, sin_TKh), written=out_TNK.nbytes)


@rope.gradient
def _(backend, d_out_TNK, x_TNK, cos_TKh, sin_TKh):
    """A rotation's transpose is the rotation by the negative angle. The angles themselves are constants."""
    return rope(backend, d_out_TNK, cos_TKh, -sin_TKh), None, None
