"""Decoding tokens through dense layers as one call: the definition's steps, by the same kernels, no Python in between.

    x = x + attention( norm(x) )              q, k, v: one meeting of the threads instead of three
    x = x + feed_forward( norm(x) )           gate and up: one, and each thread takes SwiGLU of what it computed

Bytes that must move are those of the weights and of the cache. But while Python walks from step to step (some 4 us for
each, and with cold caches, because the weights drove everything else out) the memory has nothing to do:

    a step of the 0.5B, in ms, measured in turns                 bf16     int8     int4     (memory: 33 to 35 GB/s)
    v1  16 operations a layer, each through the door             38.1     18.6     16.2
    v2  one a layer                                              36.9     17.1     14.4

    in turns again, bf16 in 12 bits by now; medians of 12 processes, between which memory moved by a third
    v2  one a layer                                              28.0     18.6     11.9
    v3  one for all layers                                       24.9     17.4     11.3

    a token of each of 16 sequences, 0.5B in int4, tokens/s      newer cores, which share a cache, or do not
    v2  operations through the door                              768      720
    v3  one for all layers                                     1,010      904

Of the 48 us that a layer of v2 cost, Python took 34 to find the weights and look at their formats, Numba 14 to look at
each array. v3 does that once, and later sees whether all are still the same (`stack.py`).

Every number comes out the same, to the last bit, as from the steps one by one, so whoever watches (a trace, diff) is
given those. Prompts, experts and windows take those steps: there they cost little. So do several sequences whose caches
are not in bfloat16. One token and several are the same kernel, compiled for another type of `past`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numba.core import types
from numba.extending import overload

from backends.cpu.attention import CHUNK
from backends.cpu.attention_block import attend_blocks, finish_parts
from backends.cpu.attention_numbers import FLOATS, PAIRS
from backends.cpu.attention_together import addresses, heads_together, whereabouts, write_together
from backends.cpu.attention_token import HEADS, attend_token
from backends.cpu.compiling import allocating, inner, kernel, within
from backends.cpu.matrix_product import (
    BFLOAT16,
    NO_BIAS,
    as_kernels_take,
    launch,
    launch_three,
    multiply,
    prepared,
    rows_of_unit,
    units,
)
from backends.cpu.rms_norm import norm_rows
from backends.cpu.rope import turn_rows
from backends.cpu.rows import F32, plain
from backends.cpu.simd import LANES, load_part, store_part
from backends.cpu.stack import Stack, alike, of_layer, stacked, unchanged
from backends.cpu.swiglu import gated
from backends.cpu.team import launcher, with_team
from backends.cpu.update_cache import write
from backends.interface import Wrapper
from backends.quantised import GROUP, Quantised

norms_in = attrgetter("input_layernorm.weight", "post_attention_layernorm.weight")
matrices_in = attrgetter(
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip
biases_in = attrgetter("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


def decoder_layers_for(features: frozenset[str]):
    """The bodies of `decoder_layers` and of `decoder_layer`. For what they cannot do they answer NotImplemented, and
    the steps are run."""
    stacks: WeakKeyDictionary = WeakKeyDictionary()  # by cache and first layer: what was found last, and its stack

    def decoder_layers(backend, x_TD, layers, tables, *, config, step):
        return through(x_TD, layers[: config.num_hidden_layers], tables, config, step, 0)

    def decoder_layer(backend, x_TD, weights, tables, *, config, step, layer):
        if isinstance(backend, Wrapper):  # somebody watches, and wants to see the steps
            return NotImplemented
        return through(x_TD, [weights], tables, config, step, layer)

    def through(x_TD, layers, tables, config, step, first):
        caches, last = [span.cache for span in step.spans], first + len(layers)
        if len(x_TD) != len(caches) or None in caches or len(tables) > 1:
            return NotImplemented
        if any(config.is_sparse(layer) or config.window(layer) for layer in range(first, last)):
            return NotImplemented
        R, alone = config.num_attention_heads // config.num_key_value_heads, len(caches) == 1
        kind = multiplied_as(caches[0].layers[first], features)
        no_biases = () if config.qkv_bias else (None,) * 3
        found = [
            (*norms_in(weights), *matrices_in(weights), *(no_biases or biases_in(weights)), kv_2GNK if alone else None)
            for weights, kv_2GNK in zip(layers, caches[0].layers[first:last], strict=True)
        ]
        kept = stacks.setdefault(caches[0], {})
        before, stack = kept.get((first, alone), ((), None))
        if not unchanged(before, found):
            stack = stack_of(found, features)
            kept[first, alone] = found, stack
        past = caches[0].length if alone else None
        if kind is PAIRS and R <= HEADS and min(config.hidden_size, config.intermediate_size) >= LANES and not alone:
            past = whereabouts(caches, first, last)
        if stack is None or past is None or R > LANES:
            return NotImplemented
        (cos_Th, sin_Th), out_TD = tables[0], np.array(x_TD, F32, order="C")
        lanes = config.head_dim // (2 if caches[0].format == "bf16" and kind is PAIRS else 1)
        layers_of_tokens(
            stack.layers[0], stack.address_LP, plain(cos_Th), plain(sin_Th), (kind,) * R, (kind,) * (lanes // LANES),
            past, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size,
            config.rms_norm_eps, out_TD,
        )  # fmt: skip
        return out_TD

    return decoder_layers, decoder_layer


def stack_of(found: list[tuple], features: frozenset[str]) -> Stack | None:
    """Layers as the kernel takes them; None if a matrix cannot be, or if layers differ."""
    if len({tuple(getattr(array, "shape", None) for array in each) for each in found}) > 1:
        return None
    layers = []
    for each in found:
        layer = as_taken(each[:2], each[2:9], each[9:12], each[12], features)
        if layer is None:
            return None
        layers.append(layer)
    return stacked(layers)


def as_taken(norms, matrices, biases, kv_2GNK, features: frozenset[str]) -> tuple | None:
    """A layer's arrays as the kernel takes them.

    None if matrices that share a token differ in format, or are not whole groups wide, so that tokens had to be filled
    up.
    """
    if any(isinstance(matrix, Quantised) and matrix.shape[1] % GROUP for matrix in matrices):
        return None
    taken = [as_kernels_take(matrix, features) for matrix in matrices]
    if any(matrix is None for matrix in taken):
        return None
    q, k, v, o, gate, up, down = taken
    bias_q, bias_k, bias_v = [NO_BIAS if bias is None else plain(bias) for bias in biases]
    if not (alike(q, k) and alike(q, v) and alike(gate, up) and alike(bias_q, bias_k) and alike(bias_q, bias_v)):
        return None
    kept = () if kv_2GNK is None else stored(kv_2GNK, features)
    return tuple(map(plain, norms)), (q, k, v), (bias_q, bias_k, bias_v), o, gate, up, down, kept


def multiplied_as(kv_2GNK: Any, features: frozenset[str]) -> float | int:
    """How keys and values are multiplied: see attention.py."""
    return PAIRS if kv_2GNK.dtype != F32 and "bf16" in features and kv_2GNK.shape[3] % 32 == 0 else FLOATS


def stored(kv_2GNK: Any, features: frozenset[str]):
    """A layer's cache for writing and for reading, and its scales or None.

    For reading, slots come before heads. That view is NumPy's, because Numba's takes two seconds to compile.
    """
    if kv_2GNK.dtype == F32:
        return kv_2GNK, slots_first(kv_2GNK), None
    if kv_2GNK.dtype == BFLOAT16:
        halves = kv_2GNK.view(np.uint16)
        pairs = multiplied_as(kv_2GNK, features) is PAIRS
        return halves, slots_first(halves.view(np.int32) if pairs else halves), None
    return kv_2GNK.values, slots_first(kv_2GNK.values), kv_2GNK.scales


def slots_first(kv_2GNK):
    return kv_2GNK.transpose(0, 2, 1, 3)


@with_team
@kernel
@allocating
def layers_of_tokens(
    state, threads, first, address_LP, cos_Th, sin_Th, rows, sixteens, past, H, G, F, eps, x_TD
):  # fmt: skip
    """The steps of the definition, in its order, layer by layer; x_TD is the stream.

    past   of one token: how many keys its cache holds; of several: where their caches are, see `Whereabouts`
    """
    (T, D), K = x_TD.shape, 2 * cos_Th.shape[1]
    h_TD, attended_Tn, q_Tn, k_Tn, v_Tn = room(T, D), room(T, H * K), room(T, H * K), room(T, G * K), room(T, G * K)
    q_THK, k_TGK = room(T, H * K).reshape(T, H, K), room(T, G * K).reshape(T, G, K)
    gate_TF, up_TF, hidden_TF = room(T, F), room(T, F), room(T, F)
    h, attended, hidden = tokens(h_TD, past), tokens(attended_Tn, past), tokens(hidden_TF, past)
    qkv_outs = tokens(q_Tn, past), tokens(k_Tn, past), tokens(v_Tn, past)
    gated_outs = tokens(gate_TF, past), tokens(up_TF, past), hidden
    for layer in range(address_LP.shape[0]):
        norms, qkv, biases, o, gate, up, down, cache = of_layer(first, address_LP, layer)
        no_bias = biases[0][:0]

        norm_rows(0, T, x_TD, norms[0], eps, h_TD)
        launch_three(state, threads, qkv, prepared(state, threads, qkv[0], h), biases, qkv_outs)
        turn_rows(0, T, q_Tn.reshape(T, H, K), cos_Th, sin_Th, q_THK)
        turn_rows(0, T, k_Tn.reshape(T, G, K), cos_Th, sin_Th, k_TGK)
        v_TGK, out_THK = v_Tn.reshape(T, G, K), attended_Tn.reshape(T, H, K)
        remember_and_attend(state, threads, layer, q_THK, k_TGK, v_TGK, cache, past, rows, sixteens, out_THK)
        launch(state, threads, o, prepared(state, threads, o, attended), no_bias, h)
        add(h_TD, x_TD)

        norm_rows(0, T, x_TD, norms[1], eps, h_TD)
        token = prepared(state, threads, gate, h)
        launch_gated(state, threads, units(gate, gated_outs[0]), gate, up, token, no_bias, gated_outs)
        launch(state, threads, down, prepared(state, threads, down, hidden), no_bias, h)
        add(h_TD, x_TD)


@within
def room(rows, columns):
    return np.empty((rows, columns), np.float32)


def tokens(x_TI, past):
    """What products are given: x_TI, or its only row. They know by the rank how many there are."""


@overload(tokens, inline="always")
def _(x_TI, past):
    return (lambda x_TI, past: x_TI[0]) if isinstance(past, types.Integer) else (lambda x_TI, past: x_TI)


@inner
def add(h_TD, x_TD):
    for t in range(x_TD.shape[0]):
        for d in range(x_TD.shape[1]):
            x_TD[t, d] += h_TD[t, d]


@inner
def gated_units(first, last, gate, up, token, no_bias, outs):
    """Units first to last - 1 of both matrices, and SwiGLU of what they give, while it is still near."""
    multiply(first, last, gate, token, no_bias, outs[0])
    multiply(first, last, up, token, no_bias, outs[1])
    each = rows_of_unit(gate, outs[0])
    end = min(last * each, outs[0].shape[-1])
    for f in range(first * each, end, LANES):
        gate_columns(outs, f, end - f)


def gate_columns(outs, f, count):
    """SwiGLU of some numbers of one token, or of all of them."""


@overload(gate_columns, inline="always")
def _(outs, f, count):
    def one(outs, f, count):
        gate_F, up_F, hidden_F = outs
        store_part(hidden_F, f, gated(load_part(gate_F, f, count), load_part(up_F, f, count)), count)

    def several(outs, f, count):
        gate_TF, up_TF, hidden_TF = outs
        for t in range(gate_TF.shape[0]):
            hidden = gated(load_part(gate_TF, (t, f), count), load_part(up_TF, (t, f), count))
            store_part(hidden_TF, (t, f), hidden, count)

    return one if outs[0].ndim == 1 else several


launch_gated = launcher(gated_units)
launch_blocks, launch_token = launcher(attend_blocks), launcher(attend_token)


def remember_and_attend(state, threads, layer, q_THK, k_TGK, v_TGK, cache, past, rows, sixteens, out_THK):
    """Write the new keys and values behind those of the cache, or of each token's own, and attend to all."""


@overload(remember_and_attend, inline="always")
def _(state, threads, layer, q_THK, k_TGK, v_TGK, cache, past, rows, sixteens, out_THK):
    def one(state, threads, layer, q_THK, k_TGK, v_TGK, cache, past, rows, sixteens, out_THK):
        write_2GNK, read_2NGK, scale_2GN = cache
        write(k_TGK, v_TGK, 0, 1, past, write_2GNK, scale_2GN)
        attend_one(state, threads, q_THK, read_2NGK, scale_2GN, past + 1, rows, sixteens, out_THK)

    def several(state, threads, layer, q_THK, k_TGK, v_TGK, cache, past, rows, sixteens, out_THK):
        (halves, pairs, address_LN, stride_N2, keys_N), G = past, k_TGK.shape[1]
        address_h2 = addresses(address_LN[layer], stride_N2, G)
        write_together(k_TGK, v_TGK, halves, address_h2, keys_N)
        heads_together(state, threads, pairs, address_h2, keys_N, CHUNK, G, q_THK, rows, sixteens, out_THK)

    return one if isinstance(past, types.Integer) else several


@kernel
@allocating
def attend_one(state, threads, q_1HK, kv_2NGK, scale_2GN, S, rows, sixteens, out_1HK):
    """As `attend` of attention.py, for one token that sees all S keys."""
    G, R, K = kv_2NGK.shape[2], len(rows), q_1HK.shape[2]
    k_SGK, v_SGK = kv_2NGK[0, :S], kv_2NGK[1, :S]
    chunks = (S + CHUNK - 1) // CHUNK
    many = chunks if chunks > 1 else 0  # parts are left to be merged
    width = (K + LANES - 1) // LANES * LANES + LANES
    m_GCn, part_GCnK = np.empty((G, many, R), np.float32), np.empty((G, many, R, width), np.float32)
    no_lse = np.empty((0, 0), np.float32)
    scales = scales_of(scale_2GN, S)
    launch_attention(
        state, threads, G * chunks, q_1HK, k_SGK, v_SGK, scales, S, rows, sixteens, m_GCn, part_GCnK, out_1HK, no_lse
    )
    if chunks > 1:
        finish_parts(m_GCn, part_GCnK, k_SGK, out_1HK, no_lse)


def launch_attention(state, threads, tasks, q, k_SGK, v_SGK, scales, S, rows, sixteens, m, part, out, lse):
    """The kernel that attention.py would take."""


@overload(launch_attention, inline="always")
def _(state, threads, tasks, q, k_SGK, v_SGK, scales, S, rows, sixteens, m, part, out, lse):
    def token(state, threads, tasks, q, k_SGK, v_SGK, scales, S, rows, sixteens, m, part, out, lse):
        cut = np.int64(0), np.int64(CHUNK)  # constants are other types than the numbers that attention.py compiles for
        launch_token(state, threads, tasks, q, k_SGK, v_SGK, cut, rows, sixteens, m, part, out, lse)

    def blocks(state, threads, tasks, q, k_SGK, v_SGK, scales, S, rows, sixteens, m, part, out, lse):
        cut = len(rows), 0, CHUNK, S - 1, S
        launch_blocks(state, threads, tasks, q, k_SGK, v_SGK, scales[0], scales[1], cut, rows, m, part, out, lse)

    return token if k_SGK.dtype == types.int32 and len(rows) <= HEADS else blocks


def scales_of(scale_2GN, S):
    """Those of the first S keys and values, or None twice."""


@overload(scales_of, inline="always")
def _(scale_2GN, S):
    if scale_2GN is None or scale_2GN == types.none:
        return lambda scale_2GN, S: (None, None)
    return lambda scale_2GN, S: (scale_2GN[0, :, :S], scale_2GN[1, :, :S])
