"""Grouped-query attention: every token looks back and takes from earlier tokens what it needs.

    scores[t, s] = q[t] . k[s] / sqrt(K)           for each query head, against the key of its KV head
    weights[t]   = softmax over the visible s of scores[t]
    out[t]       = sum over s of weights[t, s] * v[s]

Grouped-query: H query heads share G < H key/value heads, R = H / G query heads to each (14 to 2 in the 0.5B), so the
cache is R times smaller. Query head h uses KV head h // R: consecutive query heads share. With G = H this is the
multi-head attention of the original paper.

Causal: query t of T is token S - T + t of its sequence, and sees the keys 0 .. S - T + t. The corner is lower-right,
because the T tokens of this call are the *last* of the S that are visible. With a window W, it sees the last W of them.

Scores and softmax are float32: Qwen2's keys are large enough to overflow float16.

Source: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023 (GQA); transformers, Qwen2Attention.
"""

from backends.interface import Cost, nbytes, operation, shape_only


@operation
def attention(backend, q_THK, keys, values, *, spans, window=None):
    """Attend within each sequence; sequences never see each other.

    q_THK          the queries of all sequences, end to end
    keys, values   per sequence its k_GSK and v_GSK: all that it has cached, this call's included
    spans          per sequence the rows of q_THK that are its own
    window         how many keys a query sees, itself included; None for all
    """
    out_THK = backend.xp.empty_like(q_THK)
    for span, k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        q_tHK = q_THK[span.start : span.stop]
        out_THK[span.start : span.stop] = attend(backend, q_tHK, k_GSK, v_GSK, window=window)
    return out_THK


@attention.cost
def _(q_THK, keys, values, *, spans, window=None):
    T, H, K = q_THK.shape
    pairs = sum(visible_pairs(span.stop - span.start, k_GSK.shape[1], window) for span, k_GSK in zip(spans, keys))
    flops = pairs * H * (2 * K + 5 + 2 * K)  # q.k, softmax (scale, max, subtract, exp, sum), weights.v
    return Cost(shape_only((T, H, K), q_THK.dtype), flops, read=nbytes(q_THK, keys, values), written=q_THK.nbytes)


@attention.gradient
def _(backend, d_out_THK, q_THK, keys, values, *, spans, window=None):
    """Each sequence by itself. The weights are computed again: keeping them would take T x S numbers a head."""
    d_q_THK, d_keys, d_values = backend.xp.empty_like(q_THK), [], []
    for span, k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        own = slice(span.start, span.stop)
        d_q_THK[own], d_k_GSK, d_v_GSK = attend_backwards(backend, d_out_THK[own], q_THK[own], k_GSK, v_GSK, window)
        d_keys.append(d_k_GSK)
        d_values.append(d_v_GSK)
    return d_q_THK, d_keys, d_values


def visible_pairs(T, S, window, past=None):
    """How many (query, key) pairs a causal mask leaves; the words are those of `visible`.

    >>> visible_pairs(3, 3, None), visible_pairs(1, 10, None), visible_pairs(3, 10, 2)
    (6, 10, 6)
    """

    def pairs_up_to(last):  # of queries at all places below `last`, each with the keys at its own place and before
        inside = min(max(last, 0), S)
        return inside * (inside + 1) // 2 + max(last - S, 0) * S

    first = S - T if past is None else past
    pairs = pairs_up_to(first + T) - pairs_up_to(first)
    if window is not None:  # less the keys that are a window or more behind
        pairs -= pairs_up_to(first + T - window) - pairs_up_to(first - window)
    return pairs


def attend(backend, q_THK, k_GSK, v_GSK, *, window=None):
    """One sequence's attention, step by step. The last T of the S keys belong to the T queries themselves.

    >>> import numpy as np; from backends import get
    >>> q_THK = np.float32([[[0.0, 0.0]]])                           # a query that likes all keys alike ...
    >>> k_GSK, v_GSK = np.float32([[[1, 0], [0, 1]]]), np.float32([[[2, 0], [4, 8]]])
    >>> attend(get("numpy"), q_THK, k_GSK, v_GSK)                    # ... gets the mean of the values
    array([[[3., 4.]]], dtype=float32)
    """
    scores_GRTS = scores(backend, by_kv_head(q_THK, k_GSK), k_GSK, window=window)
    weights_GRTS = softmax(backend, scores_GRTS)
    return by_token(mix(backend, weights_GRTS, v_GSK))


def by_kv_head(q_THK, k_GSK):
    """One matrix product per KV head serves its R query heads: K and V are read once, not R times."""
    (T, H, K), G = q_THK.shape, k_GSK.shape[0]
    return q_THK.reshape(T, G, H // G, K).transpose(1, 2, 0, 3)


def by_token(out_GRTK):
    G, R, T, K = out_GRTK.shape
    return out_GRTK.transpose(2, 0, 1, 3).reshape(T, G * R, K)


def attend_backwards(backend, d_out_THK, q_THK, k_GSK, v_GSK, window):
    """From d_out to d_q, d_k and d_v: the steps of `attend` from the last to the first."""
    q_GRTK, d_out_GRTK = by_kv_head(q_THK, k_GSK), by_kv_head(d_out_THK, k_GSK)
    scores_GRTS = scores(backend, q_GRTK, k_GSK, window=window)
    weights_GRTS = softmax(backend, scores_GRTS)
    d_weights_GRTS, d_v_GSK = mix.gradient_of(backend, d_out_GRTK, weights_GRTS, v_GSK)
    (d_scores_GRTS,) = softmax.gradient_of(backend, d_weights_GRTS, scores_GRTS)
    d_q_GRTK, d_k_GSK = scores.gradient_of(backend, d_scores_GRTS, q_GRTK, k_GSK, window=window)
    return by_token(d_q_GRTK), d_k_GSK, d_v_GSK


@operation
def scores(backend, q_GRTK, k_GSK, *, window=None, past=None):
    """How much each query wants each key: q . k / sqrt(K), and minus infinity where the key is not visible."""
    xp = backend.xp
    G, R, T, K = q_GRTK.shape
    S = k_GSK.shape[1]
    past = S - T if past is None else past
    q_GNK = (q_GRTK * K**-0.5).reshape(G, R * T, K)  # scaling q is cheaper than scaling the scores
    k_GSK = k_GSK.astype(backend.dtype, copy=False)  # a cache may keep fewer bits
    scores_GRTS = (q_GNK @ k_GSK.swapaxes(1, 2)).reshape(G, R, T, S)
    if past >= S - 1 and (window is None or window >= past + T):
        return scores_GRTS  # decode: the newest token sees everything, no mask
    mask_TS = ~visible(xp, T, S, window, past)
    xp.copyto(scores_GRTS, -xp.inf, where=mask_TS)  # in place: a second such array would be slow
    return scores_GRTS


def visible(xp, T, S, window=None, past=None):
    """Which keys each query sees, as a T x S table of true and false.

    past   how many keys lie before the first query's own place; None: S - T, the last T keys are the queries' own

    >>> import numpy as np
    >>> visible(np, 2, 4, window=2).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 1, 1]])
    """
    past = S - T if past is None else past
    query_T1 = xp.arange(past, past + T)[:, None]
    key_S = xp.arange(S)
    causal_TS = key_S <= query_T1
    return causal_TS if window is None else causal_TS & (key_S > query_T1 - window)


@scores.cost
def _(q_GRTK, k_GSK, *, window=None, past=None):
    (G, R, T, K), S = q_GRTK.shape, k_GSK.shape[1]
    out_GRTS = shape_only((G, R, T, S), q_GRTK.dtype)
    return Cost(out_GRTS, 2 * out_GRTS.size * K, read=nbytes(q_GRTK, k_GSK), written=out_GRTS.nbytes)


@scores.gradient
def _(backend, d_out_GRTS, q_GRTK, k_GSK, *, window=None, past=None):
    """dq = dout k / sqrt(K), dk = dout^T q / sqrt(K): a key collects from all R heads that share it.

    Where a key is not visible its weight is 0, and so is what softmax hands back: nothing needs masking here.
    """
    (G, R, T, K), S = q_GRTK.shape, k_GSK.shape[1]
    d_out_GNS = d_out_GRTS.reshape(G, R * T, S)
    q_GNK = (q_GRTK * K**-0.5).reshape(G, R * T, K)
    d_q_GNK = d_out_GNS @ (k_GSK.astype(backend.dtype, copy=False) * K**-0.5)
    return d_q_GNK.reshape(G, R, T, K), d_out_GNS.swapaxes(1, 2) @ q_GNK


@operation
def softmax(backend, scores):
    """Scores to weights that are positive and sum to one along the last axis: exp(score) / sum of exp.

    Subtracting the largest score first changes nothing in the quotient and keeps exp from overflowing.

    >>> import numpy as np; from backends import get
    >>> softmax(get("numpy"), np.float32([1000, 1000, -np.inf]))
    array([0.5, 0.5, 0. ], dtype=float32)
    """
    weights = scores - scores.max(axis=-1, keepdims=True)
    backend.xp.exp(weights, out=weights)  # in place: at a long prompt this array is the largest of all
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


@softmax.cost
def _(scores):
    return Cost(shape_only(scores.shape, scores.dtype), 5 * scores.size, read=scores.nbytes, written=scores.nbytes)


@softmax.gradient
def _(backend, d_out, scores):
    """With w = softmax(scores):  dscores = w (dout - sum(w dout)). What raises all scores alike changes nothing."""
    weights = softmax(backend, scores)
    return (weights * (d_out - (weights * d_out).sum(axis=-1, keepdims=True)),)


@operation
def mix(backend, weights_GRTS, v_GSK):
    """The weighted mean of the values."""
    G, R, T, S = weights_GRTS.shape
    v_GSK = v_GSK.astype(backend.dtype, copy=False)
    return (weights_GRTS.reshape(G, R * T, S) @ v_GSK).reshape(G, R, T, -1)


@mix.cost
def _(weights_GRTS, v_GSK):
    (G, R, T, S), K = weights_GRTS.shape, v_GSK.shape[2]
    out_GRTK = shape_only((G, R, T, K), weights_GRTS.dtype)
    return Cost(out_GRTK, 2 * G * R * T * S * K, read=nbytes(weights_GRTS, v_GSK), written=out_GRTK.nbytes)


@mix.gradient
def _(backend, d_out_GRTK, weights_GRTS, v_GSK):
    """dweights = dout v^T, dv = weights^T dout: a value collects from all R heads that share it."""
    G, R, T, S = weights_GRTS.shape
    d_out_GNK = d_out_GRTK.reshape(G, R * T, -1)
    d_weights_GNS = d_out_GNK @ v_GSK.astype(backend.dtype, copy=False).swapaxes(1, 2)
    return d_weights_GNS.reshape(G, R, T, S), weights_GRTS.reshape(G, R * T, S).swapaxes(1, 2) @ d_out_GNK
