"""One token through a dense layer, in five launches, see decoder_layer.cu.

Several tokens, several sequences, experts and windows take the steps one by one, and so does whoever watches (a trace,
diff): those want to see the steps.
"""

from __future__ import annotations

import numpy as np

from backends.cuda.arrays import F32, INT8, as_matrix, empty, format_of, launch, plain, rows_at_once, threads_of
from backends.cuda.attention import WIDEST, attend, stretch
from backends.cuda.linear import linear
from backends.cuda.update_cache import parts_of, visible, write
from backends.interface import Wrapper

LARGEST = 11 << 10  # D: a token in shared memory, in what every GPU gives without being asked


def decoder_layer(backend, x_TD, weights, tables, *, config, step, layer):
    cache = step.spans[0].cache
    if isinstance(backend, Wrapper) or len(x_TD) != 1 or cache is None or len(tables) > 1:
        return NotImplemented
    if config.is_sparse(layer) or config.window(layer) or not fits(weights, config):
        return NotImplemented
    H, eps = config.num_attention_heads, config.rms_norm_eps
    attention, mlp = weights.self_attn, weights.mlp

    x_1D = plain(backend, x_TD)
    q_1HK = norm_qkv(backend, x_1D, weights.input_layernorm.weight, attention, tables[0], step.spans, layer, H, eps)
    ((k_GSK, v_GSK),) = visible(cache, layer, 1, None)
    attended_1HK, past_1 = empty(backend, q_1HK.shape), getattr(cache, "past_1", None)
    keys = stretch(backend, 0, 1, k_GSK, v_GSK, k_GSK.shape[1] - 1, past_1)
    attend(backend, q_1HK, [keys], None, attended_1HK)
    x_1D = linear(backend, attended_1HK.reshape(1, -1), attention.o_proj.weight, add_TO=x_1D)

    hidden_1F = norm_gate_up(backend, x_1D, weights.post_attention_layernorm.weight, mlp, eps)
    return linear(backend, hidden_1F, mlp.down_proj.weight, add_TO=x_1D)


def fits(weights, config) -> bool:
    """Whether the kernels take this layer: matrices that share a launch are alike, and blocks divide a head."""
    attention, mlp = weights.self_attn, weights.mlp
    together = [(attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)]
    if any(len({str(place.weight.dtype) for place in places}) > 1 for places in together):
        return False
    biases = [getattr(place, "bias", None) for place in together[0]]
    if len({None if bias is None else str(bias.dtype) for bias in biases}) > 1:
        return False
    unit = 2 * rows_at_once(attention.q_proj.weight)
    return config.head_dim % unit == 0 and config.head_dim <= WIDEST and config.hidden_size <= LARGEST


def norm_qkv(backend, x_1D, norm_D, attention, table, spans, layer, H, eps):
    """The turned queries q_1HK; keys and values go into the cache."""
    cache = spans[0].cache
    kv_2GNK, past_1 = cache.layers[layer], getattr(cache, "past_1", None)
    (_, G, N, K), D = kv_2GNK.shape, x_1D.shape[1]
    places = attention.q_proj, attention.k_proj, attention.v_proj
    matrices = [as_matrix(backend, place.weight) for place in places]
    biases = [getattr(place, "bias", None) for place in places]
    biases = [bias if bias is None else plain(backend, bias, keep=True) for bias in biases]
    bias_format = np.int32(F32) if biases[0] is None else format_of(biases[0])
    norm_D, kv_format, stored = plain(backend, norm_D, keep=True), format_of(kv_2GNK), parts_of(kv_2GNK)[0]
    q_1HK = empty(backend, (1, H, K))
    new = [empty(backend, (1, G, K)) if kv_format == INT8 else None for _ in range(2)]
    past = np.int32(0 if past_1 is not None else cache.length)
    arguments = (
        x_1D, norm_D, format_of(norm_D), np.float32(eps), matrices[0][0], *[part for m in matrices for part in m[1:]],
        *biases, bias_format, *[plain(backend, angles) for angles in table], q_1HK, *new, stored, kv_format,
        past_1, past, *map(np.int32, (D, H, G, N, K)),
    )  # fmt: skip
    blocks = (H + 2 * G) * (K // 2 // rows_at_once(places[0].weight))
    launch(backend, "norm_qkv_kernel", blocks, threads_of(places[0].weight), arguments, 4 * D)
    if kv_format == INT8:
        write(backend, *new, spans, layer)
    return q_1HK


def norm_gate_up(backend, x_1D, norm_D, mlp, eps):
    """silu(gate) * up of the normalised token: hidden_1F."""
    gate, up = as_matrix(backend, mlp.gate_proj.weight), as_matrix(backend, mlp.up_proj.weight)
    F, D = mlp.gate_proj.weight.shape
    norm_D, hidden_1F = plain(backend, norm_D, keep=True), empty(backend, (1, F))
    head = x_1D, norm_D, format_of(norm_D), np.float32(eps), gate[0]
    arguments = *head, *gate[1:], *up[1:], hidden_1F, np.int32(D), np.int32(F)
    blocks = -(-F // rows_at_once(mlp.gate_proj.weight))
    launch(backend, "norm_gate_up_kernel", blocks, threads_of(mlp.gate_proj.weight), arguments, 4 * D)
    return hidden_1F
