"""Attention in parts: the keys of a query lie in several stretches, and what each gives is merged, exactly.

    part p, over its own keys      out_p = sum of weight * v          lse_p = log( sum of exp(score) )
    merged                         out   = sum of share_p * out_p     share_p = exp(lse_p) / sum of exp(lse)

One softmax over all keys is the same: a part's weights are right among themselves, and exp(lse) is what it weighs
beside the others (lse: log-sum-exp). So keys may stay where they are, be turned differently towards the same query
(dual_chunk.py), lie in a ring (sliding_window.py), or on another machine.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe and Staats 2021, "Self-attention
does not need O(n^2) memory".
"""

from backends.interface import Cost, nbytes, operation, shape_only
from tinyqwen.blocks.attention import by_kv_head, by_token, mix, scores, visible_pairs


@operation
def attention_part(backend, q_THK, k_GSK, v_GSK, *, past, window=None):
    """One sequence's queries against one stretch of its keys: out_THK and lse_TH.

    past     how many keys of the stretch lie before the first query's own place: query t sees its keys 0 .. past + t.
             S - 1 or more: all of them lie behind. Below 0: the stretch begins after the first query
    window   how many keys a query sees, itself included, wherever they lie; None for all

    A query that sees nothing of the stretch gets 0, and minus infinity: its share is none.

    >>> import numpy as np; from backends import get
    >>> q_THK, k_GSK = np.zeros((2, 1, 1), np.float32), np.zeros((1, 3, 1), np.float32)       # all scores are 0
    >>> out_THK, lse_TH = attention_part(get("numpy"), q_THK, k_GSK, np.float32([[[3], [5], [7]]]), past=0)
    >>> out_THK.ravel(), np.exp(lse_TH.ravel()).round(3)            # the first query sees 3, the second one 3 and 5
    (array([3., 4.], dtype=float32), array([1., 2.], dtype=float32))
    """
    T, H, _ = q_THK.shape
    scores_GRTS = scores(backend, by_kv_head(q_THK, k_GSK), k_GSK, window=window, past=past)
    weights_GRTS, lse_GRT = softmax_part(backend, scores_GRTS)
    return by_token(mix(backend, weights_GRTS, v_GSK)), lse_GRT.transpose(2, 0, 1).reshape(T, H)


@attention_part.cost
def _(q_THK, k_GSK, v_GSK, *, past, window=None):
    (T, H, K), S = q_THK.shape, k_GSK.shape[1]
    out_THK, lse_TH = shape_only((T, H, K), q_THK.dtype), shape_only((T, H), q_THK.dtype)
    flops = visible_pairs(T, S, window, past) * H * (2 * K + 5 + 2 * K) + T * H  # as attention's, and a log
    return Cost((out_THK, lse_TH), flops, read=nbytes(q_THK, k_GSK, v_GSK), written=nbytes(out_THK, lse_TH))


@operation
def softmax_part(backend, scores_GRTS):
    """Weights as `softmax` makes them, and the log of the sum of exp(score): weights_GRTS, lse_GRT.

    >>> import numpy as np; from backends import get
    >>> weights_GRTS, lse_GRT = softmax_part(get("numpy"), np.float32([[[[5, 5, -np.inf], [-np.inf] * 3]]]))
    >>> weights_GRTS[0, 0].tolist(), lse_GRT[0, 0].round(3).tolist()                # 5 + log 2; nothing to see
    ([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], [5.692999839782715, -inf])
    """
    xp = backend.xp
    if scores_GRTS.shape[-1] == 0:  # no keys at all
        return scores_GRTS, xp.full(scores_GRTS.shape[:-1], -xp.inf, scores_GRTS.dtype)
    top_GRT1 = scores_GRTS.max(axis=-1, keepdims=True)
    top_GRT1 = xp.where(top_GRT1 == -xp.inf, 0, top_GRT1)  # nothing visible: all of exp(-inf - 0) is 0
    weights_GRTS = scores_GRTS - top_GRT1
    xp.exp(weights_GRTS, out=weights_GRTS)
    total_GRT1 = weights_GRTS.sum(axis=-1, keepdims=True)
    nothing_GRT1 = total_GRT1 == 0
    total_GRT1[nothing_GRT1] = 1
    weights_GRTS /= total_GRT1
    lse_GRT1 = top_GRT1 + xp.log(total_GRT1)
    lse_GRT1[nothing_GRT1] = -xp.inf
    return weights_GRTS, lse_GRT1[..., 0]


@softmax_part.cost
def _(scores_GRTS):
    weights_GRTS = shape_only(scores_GRTS.shape, scores_GRTS.dtype)
    lse_GRT = shape_only(scores_GRTS.shape[:-1], scores_GRTS.dtype)
    written = nbytes(weights_GRTS, lse_GRT)
    return Cost((weights_GRTS, lse_GRT), 5 * scores_GRTS.size + lse_GRT.size, read=scores_GRTS.nbytes, written=written)


@operation
def merge_parts(backend, outs, lses):
    """What one softmax over the keys of all parts would have given: out_THK.

    outs, lses   of each part, as `attention_part` returns them

    >>> import numpy as np; from backends import get
    >>> three_and_five, seven = np.float32([[[4]]]), np.float32([[[7]]])                # as above: all scores are 0
    >>> merge_parts(get("numpy"), [three_and_five, seven], [np.log(np.float32([[2]])), np.log(np.float32([[1]]))])
    array([[[5.]]], dtype=float32)
    """
    xp = backend.xp
    lse_NTH = xp.stack(lses)  # N parts
    top_TH = lse_NTH.max(axis=0)
    share_NTH = xp.exp(lse_NTH - xp.where(top_TH == -xp.inf, 0, top_TH))
    total_TH = share_NTH.sum(axis=0)
    share_NTH /= xp.where(total_TH == 0, 1, total_TH)
    out_THK = share_NTH[0][..., None] * outs[0]
    for more_THK, share_TH in zip(outs[1:], share_NTH[1:]):
        out_THK += share_TH[..., None] * more_THK
    return out_THK


@merge_parts.cost
def _(outs, lses):
    out_THK = shape_only(outs[0].shape, outs[0].dtype)
    flops = len(outs) * (2 * out_THK.size + 5 * lses[0].size)
    return Cost(out_THK, flops, read=nbytes(outs, lses), written=out_THK.nbytes)


def merged(backend, parts):
    """The parts as one; where there is only one, that is it."""
    outs, lses = zip(*parts)
    return outs[0] if len(outs) == 1 else merge_parts(backend, outs, lses)
