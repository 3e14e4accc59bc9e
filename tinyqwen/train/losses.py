"""Losses on sequences. Each is a function of log-probabilities alone, and says how they should change.

All return (loss, coefficient_N) with coefficient[n] = d loss / d log_p[n], which is what the way back starts with:

    log_p_N = log_probability(tape, forward(tape, config, weights, step), token_N)
    loss, coefficient_N = cross_entropy(log_p_N)
    tape.backward(log_p_N, coefficient_N)

Rows n are target tokens of all sequences, end to end; `sequence_N` says whose each is, where that matters.
"""

from __future__ import annotations

import numpy as np


def cross_entropy(log_p_N, weight_N=None, total=None):
    """loss = - sum of weight * log p / sum of weight. What is not to be learnt (a prompt) has weight 0, or no row.

    total   the sum of all weights, if these are a part of a step only: parts then add up to the step's loss

    >>> loss, coefficient_N = cross_entropy(np.log([0.5, 0.25]), np.array([1, 0]))
    >>> round(loss, 4), coefficient_N
    (0.6931, array([-1., -0.]))
    """
    weight_N = np.ones_like(log_p_N) if weight_N is None else weight_N
    coefficient_N = (weight_N / -(total or weight_N.sum())).astype(log_p_N.dtype)
    return float(coefficient_N @ log_p_N), coefficient_N


def dpo(log_p_N, reference_N, sequence_N, *, beta=0.1):
    """Direct preference optimisation: of each pair, sequence 2i is the chosen answer, 2i + 1 the rejected one.

        h    = beta [ (s_chosen - s_rejected) - (the same of the reference) ]       s = sum of an answer's log p
        loss = mean over the pairs of -log sigmoid(h);     c = -+ beta sigmoid(-h) / pairs

    reference_N   log p of the same tokens under the model that training started from

    Before the first step the model is its reference, and every pair costs ln 2:

    >>> log_p_N = np.log([0.5, 0.25, 0.5])
    >>> loss, coefficient_N = dpo(log_p_N, log_p_N, np.array([0, 1, 1]))
    >>> round(loss, 4), coefficient_N
    (0.6931, array([-0.05,  0.05,  0.05]))

    Source: Rafailov et al. 2023, equation 7.
    """
    loss, push_S = preference(implicit_rewards(log_p_N, reference_N, sequence_N, beta=beta))
    return loss, (beta * push_S)[sequence_N].astype(log_p_N.dtype)


def implicit_rewards(log_p_N, reference_N, sequence_N, *, beta=0.1):
    """What DPO takes for the reward of each sequence: beta times how much likelier it became than in the reference."""
    return beta * np.bincount(sequence_N, log_p_N - reference_N)


def preference(reward_S):
    """Bradley and Terry: sequence 2i is preferred to 2i + 1 with probability sigmoid(reward - reward).

        loss = mean over the pairs of -log sigmoid(h);     d loss / d reward = -+ sigmoid(-h) / pairs

    DPO with the rewards that a model implies; a reward model with those that its head says.

    >>> preference(np.array([3.0, 3.0]))[1]
    array([-0.5,  0.5])
    """
    margin_P = reward_S[::2] - reward_S[1::2]  # P: pairs
    push_P = np.exp(-np.logaddexp(0, margin_P)) / len(margin_P)
    return float(np.logaddexp(0, -margin_P).mean()), np.stack([-push_P, push_P], axis=1).ravel()


def advantages(reward_PG, *, by_deviation=True):
    """How much better each of the G answers to a prompt is than its group: (reward - mean) / deviation.

    A group in which all are alike teaches nothing:

    >>> advantages(np.array([[1.0, 0, 0, 1], [1, 1, 1, 1]])).round(2)
    array([[ 0.87, -0.87, -0.87,  0.87],
           [ 0.  ,  0.  ,  0.  ,  0.  ]])

    by_deviation   divide by the sample deviation, as GRPO does; Dr. GRPO leaves it out
    """
    centred_PG = reward_PG - reward_PG.mean(axis=1, keepdims=True)
    if by_deviation:
        centred_PG = centred_PG / (reward_PG.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    return centred_PG


def grpo(log_p_N, old_N, advantage_N, weight_N, *, clip=0.2, reference_N=None, beta=0.0):
    """Group relative policy optimisation.

        ratio = p / p_old                      d = log p_reference - log p
        loss  = sum of weight * ( -min(ratio A, clipped ratio A) + beta (exp(d) - d - 1) )
        c     = weight * ( -ratio A [not clipped] + beta (1 - exp(d)) )

    old_N         log p of the tokens when they were sampled
    advantage_N   A, the same for all tokens of an answer
    weight_N      of each token: 1 / (answers * tokens of its answer) in the paper, 1 / (all tokens) in DAPO
    clip          how far the ratio may leave 1 before a token has had enough
    beta          weight of staying near the reference; its estimate of the divergence is never negative

    In the first step after sampling p is p_old, and this is REINFORCE: c = -A weight.

    Source: Shao et al. 2024, "DeepSeekMath", equations 3 and 4.
    """
    ratio_N = np.exp(log_p_N - old_N)
    clipped_N = np.clip(ratio_N, 1 - clip, 1 + clip)
    gain_N = np.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    free_N = ratio_N * advantage_N <= clipped_N * advantage_N
    loss_N, coefficient_N = -gain_N, -ratio_N * advantage_N * free_N
    if beta:
        distance_N = reference_N - log_p_N
        loss_N = loss_N + beta * (np.exp(distance_N) - distance_N - 1)
        coefficient_N = coefficient_N + beta * (1 - np.exp(distance_N))
    return float(weight_N @ loss_N), (weight_N * coefficient_N).astype(log_p_N.dtype)


def distillation(log_p_N, teacher_N, weight_N):
    """On-policy distillation: of tokens that the model sampled itself, lower those that the teacher holds less likely.

    An estimate of KL(model || teacher) from its own samples, sum of weight * (log p - log p of the teacher); its
    slope is c = weight * (log p - log p of the teacher), as in REINFORCE with that as the cost of each token.
    """
    excess_N = log_p_N - teacher_N
    return float(weight_N @ excess_N), (weight_N * excess_N).astype(log_p_N.dtype)
