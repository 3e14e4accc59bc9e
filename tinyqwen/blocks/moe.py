"""Mixture of experts: many feed-forward networks, of which each token uses a few.

    p        = softmax( router(x) )                 over ALL experts, in float32
    chosen   = the A experts with the largest p
    out      = sum over chosen e of p[e] * expert_e(x)  +  sigmoid( shared_gate(x) ) * shared_expert(x)

The 57B-A14B has 64 experts of width 2560 per layer and uses 8: 57 B parameters to store, 14 B to read and multiply per
token. What is particular to Qwen2: the softmax comes before the choice, so with norm_topk_prob false (as published) the
chosen weights sum to less than one; and one *shared* expert, as wide as the 8 chosen together, sees every token, scaled
by one sigmoid gate per token. There is no capacity limit: no token is ever dropped.

Source: Qwen2 technical report, section 2.2.2; transformers, models/qwen2_moe/modeling_qwen2_moe.py.
"""

from backends.interface import Cost, nbytes, operation, shape_only
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.swiglu import feed_forward, feed_forward_again


@operation
def sparse_moe(backend, x_TD, weights, *, config):
    """The feed-forward part of a sparse layer: the routed experts plus the shared one."""
    expert_TA, weight_TA = route(
        backend, x_TD, weights.gate.weight, top_k=config.num_experts_per_tok, normalise=config.norm_topk_prob
    )
    routed_TD = experts(backend, x_TD, expert_TA, weight_TA, weights.experts)
    shared_TD = feed_forward(backend, x_TD, weights.shared_expert)
    gate_T1 = linear(backend, x_TD, weights.shared_expert_gate.weight)
    return add(backend, routed_TD, sigmoid_gate(backend, gate_T1, shared_TD))


@operation
def route(backend, x_TD, gate_ED, *, top_k, normalise):
    """Choose each token's experts: their numbers and weights, the heaviest first; of equals, the lower number.

    >>> import numpy as np; from backends import get
    >>> logits = np.log(np.float32([[1, 5, 4]]))                     # probabilities .1 .5 .4
    >>> expert_TA, weight_TA = route(get("numpy"), np.float32([[1]]), logits.T, top_k=2, normalise=False)
    >>> expert_TA, weight_TA.round(3)
    (array([[1, 2]]), array([[0.5, 0.4]], dtype=float32))
    """
    xp = backend.xp
    probability_TE = softmax(backend, linear(backend, x_TD, gate_ED))
    expert_TA = xp.argsort(-probability_TE, axis=-1, kind="stable")[:, :top_k]
    weight_TA = xp.take_along_axis(probability_TE, expert_TA, axis=-1)
    if normalise:
        weight_TA = weight_TA / weight_TA.sum(axis=-1, keepdims=True)
    return expert_TA, weight_TA


@route.cost
def _(x_TD, gate_ED, *, top_k, normalise):
    (T, D), E = x_TD.shape, gate_ED.shape[0]
    expert_TA, weight_TA = shape_only((T, top_k), int), shape_only((T, top_k), x_TD.dtype)
    return Cost((expert_TA, weight_TA), T * E * (2 * D + 5), nbytes(x_TD, gate_ED), nbytes(expert_TA, weight_TA))


@route.gradient
def _(backend, d_out, x_TD, gate_ED, *, top_k, normalise):
    """Through the weights of the chosen; which ones are chosen is a constant (it changes in jumps).

    If they were normalised, w = p / sum(p):  dp = (dw - sum(dw w)) / sum(p).  Then back through the softmax, where the
    probabilities of those not chosen take part: p_e falls if another rises.
    """
    xp, d_weight_TA = backend.xp, d_out[1]
    expert_TA, weight_TA = route(backend, x_TD, gate_ED, top_k=top_k, normalise=normalise)
    logits_TE = linear(backend, x_TD, gate_ED)
    if normalise:
        chosen_TA = xp.take_along_axis(softmax(backend, logits_TE), expert_TA, axis=-1)
        d_weight_TA = d_weight_TA - (d_weight_TA * weight_TA).sum(axis=-1, keepdims=True)
        d_weight_TA /= chosen_TA.sum(axis=-1, keepdims=True)
    d_probability_TE = xp.zeros_like(logits_TE)
    xp.put_along_axis(d_probability_TE, expert_TA, d_weight_TA, axis=-1)
    (d_logits_TE,) = softmax.gradient_of(backend, d_probability_TE, logits_TE)
    return linear.gradient_of(backend, d_logits_TE, x_TD, gate_ED)[:2]


@operation
def experts(backend, x_TD, expert_TA, weight_TA, weights):
    """Each expert works on the tokens that chose it, all at once; the results return to their rows, weighted.

    weights   a list of E experts, each with gate_proj, up_proj and down_proj
    """
    out_TD = backend.xp.zeros_like(x_TD)
    for expert, weights_of_expert in enumerate(weights):
        token_N, slot_N = backend.xp.nonzero(expert_TA == expert)
        if len(token_N):  # an expert that no token chose is not even read
            y_ND = feed_forward(backend, x_TD[token_N], weights_of_expert)
            out_TD[token_N] += weight_TA[token_N, slot_N, None] * y_ND
    return out_TD


@experts.cost
def _(x_TD, expert_TA, weight_TA, weights):
    (T, D), A, E = x_TD.shape, expert_TA.shape[1], len(weights)
    M = weights[0].gate_proj.weight.shape[0]
    flops = T * A * (6 * D * M + 5 * M + 2 * D)
    # How many experts are read depends on the data. Counted: T * A different ones, or all once that is more than E.
    one = nbytes(weights[0].gate_proj.weight, weights[0].up_proj.weight, weights[0].down_proj.weight)
    touched = min(E, T * A)
    return Cost(shape_only((T, D), x_TD.dtype), flops, nbytes(x_TD, expert_TA, weight_TA) + touched * one, x_TD.nbytes)


@experts.gradient
def _(backend, d_out_TD, x_TD, expert_TA, weight_TA, weights):
    """Each expert's tokens go through it once more, and back. A token's weight gets <dout, what the expert made of it>.

    Experts without a token have no gradient at all.
    """
    xp = backend.xp
    d_x_TD, d_weight_TA, d_weights = xp.zeros_like(x_TD), xp.zeros_like(weight_TA), []
    for expert, weights_of_expert in enumerate(weights):
        token_N, slot_N = xp.nonzero(expert_TA == expert)
        d_weights.append(None)
        if len(token_N):
            d_out_ND = d_out_TD[token_N]
            y_ND, back = feed_forward_again(backend, x_TD[token_N], weights_of_expert)
            d_weight_TA[token_N, slot_N] = (d_out_ND * y_ND).sum(axis=-1)
            d_x_ND, d_weights[expert] = back(weight_TA[token_N, slot_N, None] * d_out_ND)
            d_x_TD[token_N] += d_x_ND
    return d_x_TD, None, d_weight_TA, d_weights


@operation
def sigmoid_gate(backend, gate_T1, x_TD):
    """Scale each token's vector by sigmoid(gate), a number between 0 and 1."""
    xp = backend.xp
    return x_TD / (1 + xp.exp(xp.minimum(-gate_T1, 88)))


@sigmoid_gate.cost
def _(gate_T1, x_TD):
    return Cost(shape_only(x_TD.shape, x_TD.dtype), x_TD.size + 4 * len(x_TD), nbytes(gate_T1, x_TD), x_TD.nbytes)


@sigmoid_gate.gradient
def _(backend, d_out_TD, gate_T1, x_TD):
    """With s = sigmoid(gate):  dgate = <dout, x> s (1 - s),  dx = dout s."""
    xp = backend.xp
    sigmoid_T1 = 1 / (1 + xp.exp(xp.minimum(-gate_T1, 88)))
    d_gate_T1 = (d_out_TD * x_TD).sum(axis=-1, keepdims=True) * sigmoid_T1 * (1 - sigmoid_T1)
    return d_gate_T1, d_out_TD * sigmoid_T1
