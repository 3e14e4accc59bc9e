"""The attention block: project, turn by position, remember, attend, project back.

    q, k, v = x Wq + bq, x Wk + bk, x Wv + bv
    out     = attention(turned q, all turned k so far, all v so far) Wo

Qwen2 adds biases to q, k and v (Llama does not), which helps it extrapolate to longer texts; the way back has none.

How far a query sees, the config says: everything (attention.py), the last W tokens (sliding_window.py), or everything
at distances that the model knows from training (dual_chunk.py).

Source: transformers, Qwen2Attention.
"""

from backends.interface import operation
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.dual_chunk import dual_chunk_attention
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.rope import rope
from tinyqwen.blocks.sliding_window import attend_in_window
from tinyqwen.kv_cache import update_cache


@operation
def self_attention(backend, x_TD, weights, tables, *, config, step, layer):
    """What each token finds in its sequence.

    tables   pairs (cos_TKh, sin_TKh). Keys are turned by the first; queries by each, where there are several
    """
    T = x_TD.shape[0]
    H, G, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    q_THK = project(backend, x_TD, weights.q_proj).reshape(T, H, K)
    k_TGK = project(backend, x_TD, weights.k_proj).reshape(T, G, K)
    v_TGK = project(backend, x_TD, weights.v_proj).reshape(T, G, K)

    queries = [rope(backend, q_THK, cos_TKh, sin_TKh) for cos_TKh, sin_TKh in tables]
    k_TGK = rope(backend, k_TGK, *tables[0])

    chunk, window = config.dual_chunk_attention_config, config.window(layer)
    keys, values = update_cache(backend, k_TGK, v_TGK, spans=step.spans, layer=layer, window=window)
    if chunk is not None:
        out_THK = dual_chunk_attention(backend, queries, keys, values, spans=step.spans, chunk=chunk)
    elif window is not None:
        out_THK = attend_in_window(backend, *queries, keys, values, spans=step.spans, window=window)
    else:
        out_THK = attention(backend, *queries, keys, values, spans=step.spans)
    return linear(backend, out_THK.reshape(T, H * K), weights.o_proj.weight)


def project(backend, x_TD, weights):
    return linear(backend, x_TD, weights.weight, getattr(weights, "bias", None))
