"""Twelve bugs that people really shipped, each as a wrong body for one operation.

No block is touched: `Backend(np, bodies={bug.operation: bug.body})` runs the unchanged model with that one operation
replaced, the same way in which a faster kernel would be put in its place. All of them run without an error and print
text. `python walkthrough/11_break_it.py` shows how to find them; where each one is found stands in
tests/tinyqwen/test_diff.py, but look for yourself first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from backends import Backend
from tinyqwen.blocks.attention import attention, scores, softmax, visible
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.moe import sparse_moe
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope_tables
from tinyqwen.blocks.self_attention import self_attention
from tinyqwen.blocks.swiglu import feed_forward, swiglu


class Bug(NamedTuple):
    """A mistake: what happened, the operation that it is in, and the wrong body of it."""

    story: str
    operation: str
    body: Callable

    @property
    def backend(self) -> Backend:
        """The NumPy backend with this mistake in it."""
        return Backend(np, bodies={self.operation: self.body})


# ---- positions ----------------------------------------------------------------------------------------------------


def rope_neighbours(backend, x_TNK, cos_TKh, sin_TKh):
    out_TNK = backend.xp.empty_like(x_TNK)
    a_TNKh, b_TNKh = x_TNK[..., 0::2], x_TNK[..., 1::2]
    cos_T1Kh, sin_T1Kh = cos_TKh[:, None], sin_TKh[:, None]
    out_TNK[..., 0::2] = a_TNKh * cos_T1Kh - b_TNKh * sin_T1Kh
    out_TNK[..., 1::2] = b_TNKh * cos_T1Kh + a_TNKh * sin_T1Kh
    return out_TNK


def rope_bfloat16(backend, position_T, *, head_dim, theta, scaling):
    exponent_Kh = np.arange(0, head_dim, 2) / head_dim
    angle_TKh = (position_T[:, None] * theta**-exponent_Kh).astype(ml_dtypes.bfloat16).astype(backend.dtype)
    return np.cos(angle_TKh), np.sin(angle_TKh)


def decode_position(backend, position_T, *, head_dim, theta, scaling):
    decoding = len(position_T) == 1
    return rope_tables.definition(backend, position_T + decoding, head_dim=head_dim, theta=theta, scaling=scaling)


# ---- norms, biases, residuals -------------------------------------------------------------------------------------


def eps_outside(backend, x_TD, weight_D, *, eps):
    xp = backend.xp
    mean_square_T1 = xp.mean(x_TD * x_TD, axis=-1, keepdims=True)
    return x_TD / (xp.sqrt(mean_square_T1) + eps) * weight_D


def no_qkv_bias(backend, x_TI, weight_OI, bias_O=None):
    return linear.definition(backend, x_TI, weight_OI)


def residual_after_norm(backend, x_TD, weights, tables, *, config, step, layer):
    eps = config.rms_norm_eps
    x_TD = rms_norm(backend, x_TD, weights.input_layernorm.weight, eps=eps)
    h_TD = self_attention(backend, x_TD, weights.self_attn, tables, config=config, step=step, layer=layer)
    x_TD = add(backend, x_TD, h_TD)
    x_TD = rms_norm(backend, x_TD, weights.post_attention_layernorm.weight, eps=eps)
    if config.is_sparse(layer):
        return add(backend, x_TD, sparse_moe(backend, x_TD, weights.mlp, config=config))
    return add(backend, x_TD, feed_forward(backend, x_TD, weights.mlp))


# ---- attention ----------------------------------------------------------------------------------------------------


def heads_modulo(backend, q_THK, keys, values, *, spans, window=None):
    (T, H, K), G = q_THK.shape, keys[0].shape[0]
    q_THK = q_THK.reshape(T, H // G, G, K).swapaxes(1, 2).reshape(T, H, K)
    out_THK = attention.definition(backend, q_THK, keys, values, spans=spans, window=window)
    return out_THK.reshape(T, G, H // G, K).swapaxes(1, 2).reshape(T, H, K)


def sees_next(backend, q_GRTK, k_GSK, *, window=None, past=None):
    (_, _, T, K), S = q_GRTK.shape, k_GSK.shape[1]
    past = S - T if past is None else past
    scores_GRTS = (q_GRTK * K**-0.5) @ k_GSK[:, None].swapaxes(2, 3)
    sees_TS = visible(np, T, S, window and window + 1, past + 1)  # as if each query were one token later
    return np.where(sees_TS, scores_GRTS, -np.inf).astype(q_GRTK.dtype)


def window_plus_one(backend, q_GRTK, k_GSK, *, window=None, past=None):
    return scores.definition(backend, q_GRTK, k_GSK, window=window and window + 1, past=past)


# ---- feed-forward and experts -------------------------------------------------------------------------------------


def gate_up_swapped(backend, gate_TF, up_TF):
    return swiglu.definition(backend, up_TF, gate_TF)


def softmax_after_top_k(backend, x_TD, gate_ED, *, top_k, normalise):
    xp = backend.xp
    logits_TE = linear(backend, x_TD, gate_ED)
    expert_TA = xp.argsort(-logits_TE, axis=-1, kind="stable")[:, :top_k]
    return expert_TA, softmax(backend, xp.take_along_axis(logits_TE, expert_TA, axis=-1))


def no_shared_gate(backend, gate_T1, x_TD):
    return x_TD


BUGS = {
    "rope-neighbours": Bug(
        "Llama's own files pair 2i with 2i + 1, Qwen2's pair i with i + K/2", "rope", rope_neighbours
    ),
    "rope-bfloat16": Bug("the whole model was cast to bfloat16, the angles too", "rope_tables", rope_bfloat16),
    "decode-position": Bug("the cache's length was read after the new token was in it", "rope_tables", decode_position),
    "eps-outside": Bug("eps was added to the root, where the paper adds it below", "rms_norm", eps_outside),
    "no-qkv-bias": Bug("Qwen2's weights went into Llama's code, which has no biases", "linear", no_qkv_bias),
    "residual-after-norm": Bug("the norm's result took the place of the stream", "decoder_layer", residual_after_norm),
    "heads-modulo": Bug("KV heads were tiled (0 1 0 1) instead of repeated (0 0 1 1)", "attention", heads_modulo),
    "sees-next": Bug("triu(2) for triu(1): every prompt token saw the next one", "scores", sees_next),
    "window-plus-one": Bug("a window of W keys and the query itself, instead of W in all", "scores", window_plus_one),
    "gate-up-swapped": Bug("a fused gate_up matrix was cut the other way round", "swiglu", gate_up_swapped),
    "softmax-after-top-k": Bug("Mixtral's router was taken over for Qwen2-MoE", "route", softmax_after_top_k),
    "no-shared-gate": Bug("the shared expert was simply added", "sigmoid_gate", no_shared_gate),
}
