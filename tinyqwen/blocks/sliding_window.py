"""Sliding window: a query sees the last W keys, itself included, so that a layer remembers W tokens and no more.

    token i sees keys j with   i - W < j <= i

Layer on layer, what a token knows reaches W - 1 tokens further back. Positions stay those of the whole text. Qwen2's
configs name a window, and all of them have use_sliding_window false; where it is true, the *first* max_window_layers
layers see everything and the rest slide.

The cache of such a layer is a ring (kv_cache.py): position p lies in slot p mod N. What a step sees lies in one stretch
of it, or in two where the ring begins anew between them; then each is a part, and parts merge (attention_parts.py).

Source: Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B"; transformers, Qwen2Config and
sliding_window_causal_mask_function.
"""

from backends.interface import Cost, nbytes, operation, shape_only
from tinyqwen.blocks.attention import attention, visible_pairs
from tinyqwen.blocks.attention_parts import attention_part, merged


def attend_in_window(backend, q_THK, keys, values, *, spans, window):
    """Attend within each sequence to its last `window` keys: out_THK.

    q_THK, spans   as of `attention`
    keys, values   per sequence a list of stretches k_GSK and v_GSK, in order; the last ones are this call's own
    """
    if all(len(stretches) == 1 for stretches in keys):
        return attention(backend, q_THK, [k for (k,) in keys], [v for (v,) in values], spans=spans, window=window)
    return sliding_window_attention(backend, q_THK, keys, values, spans=spans, window=window)


@operation
def sliding_window_attention(backend, q_THK, keys, values, *, spans, window):
    """The same where the ring begins anew within what some sequence sees: that sequence's keys are two parts."""
    out_THK = backend.xp.empty_like(q_THK)
    for span, k_stretches, v_stretches in zip(spans, keys, values, strict=True):
        rows = slice(span.start, span.stop)
        past = sum(k_GSK.shape[1] for k_GSK in k_stretches) - (span.stop - span.start)
        parts = []
        for k_GSK, v_GSK in zip(k_stretches, v_stretches):
            parts.append(attention_part(backend, q_THK[rows], k_GSK, v_GSK, past=past, window=window))
            past -= k_GSK.shape[1]  # of the next stretch, so many fewer keys lie before the first query
        out_THK[rows] = merged(backend, parts)
    return out_THK


@sliding_window_attention.cost
def _(q_THK, keys, values, *, spans, window):
    (T, H, K), pairs = q_THK.shape, 0
    for span, k_stretches in zip(spans, keys):
        pairs += visible_pairs(span.stop - span.start, sum(k_GSK.shape[1] for k_GSK in k_stretches), window)
    flops = pairs * H * (2 * K + 5 + 2 * K)
    return Cost(shape_only((T, H, K), q_THK.dtype), flops, read=nbytes(q_THK, keys, values), written=q_THK.nbytes)
