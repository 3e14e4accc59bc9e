"""The loss: how likely the model held the tokens that did come.

    log p[n] = logits[n, token[n]] - log( sum over v of exp(logits[n, v]) )

Cross-entropy, the loss of pretraining and fine-tuning, is the mean of -log p. But the operation is log p itself, as
every loss on sequences is some function of these numbers, and reaches the model as one *coefficient* a token:

    c[n]           = d loss / d log p[n]
    d logits[n, v] = c[n] ( [v = token[n]] - p[n, v] )

    cross-entropy       c = -1 / tokens                          raise what came
    DPO                 c = -+ beta sigmoid(-margin)             raise the chosen answer, lower the rejected
    GRPO                c = -ratio * advantage + ...             raise what was better than its group
    distillation        c = log p - log p of the teacher         lower what the teacher holds less likely (own samples)

So a loss is a few lines that never touch the model: see `tinyqwen.train.losses`.

Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", 6.2.2.3; facts above by the chain rule.
"""

from backends.interface import Cost, nbytes, operation, shape_only


@operation
def log_probability(backend, logits_NV, token_N):
    """The natural logarithm of each row's probability of its token.

    token_N   ids in [0, V): the token that came after the one whose logits these are

    >>> import numpy as np; from backends import get
    >>> logits_NV = np.log(np.float32([[2, 1, 1], [2, 1, 1]]))        # probabilities 1/2, 1/4, 1/4
    >>> np.exp(log_probability(get("numpy"), logits_NV, np.array([0, 2])))
    array([0.5 , 0.25], dtype=float32)
    """
    xp = backend.xp
    shifted_NV = logits_NV - logits_NV.max(axis=-1, keepdims=True)  # exp of the largest is 1, and overflows nowhere
    chosen_N = shifted_NV[xp.arange(len(shifted_NV)), xp.asarray(token_N)]
    return chosen_N - xp.log(xp.exp(shifted_NV).sum(axis=-1))


@log_probability.cost
def _(logits_NV, token_N):
    out_N = shape_only(token_N.shape, logits_NV.dtype)
    return Cost(out_N, 4 * logits_NV.size + 2 * out_N.size, read=nbytes(logits_NV, token_N), written=out_N.nbytes)


@log_probability.gradient
def _(backend, d_out_N, logits_NV, token_N):
    """dlogits = dout ([v = token] - softmax(logits)); each row sums to 0."""
    xp = backend.xp
    d_logits_NV = xp.exp(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    d_logits_NV *= -d_out_N[:, None] / d_logits_NV.sum(axis=-1, keepdims=True)
    d_logits_NV[xp.arange(len(d_logits_NV)), xp.asarray(token_N)] += d_out_N
    return d_logits_NV, None
