"""One token of each of several sequences: their attention as one call, with one meeting of the threads.

Bytes that must move are those of all caches. But a call for each sequence costs 7 us before a key is read (Python looks
at its arrays, kernels get memory, the threads meet), and 16 short ones in 24 layers 2.7 of the 21 ms that a step of the
0.5B takes in int4.

                                              16 sequences of 40 keys, a layer of the 0.5B, two cores
    v1  a call for each                       120 us
    v2  one call                               70      30 of them to find out where 32 arrays lie
    v3  a part of one for all layers                   addresses are kept with the caches (`Whereabouts`)
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from backends.cpu.attention_block import finish_parts
from backends.cpu.attention_numbers import PAIRS
from backends.cpu.attention_token import HEADS, memory, token_tasks
from backends.cpu.compiling import allocating, kernel
from backends.cpu.simd import LANES
from backends.cpu.stack import of_layer
from backends.cpu.team import launcher, with_team
from backends.cpu.update_cache import write_row
from backends.packed import BFLOAT16


def attend_together(q_NHK, keys, values, chunk_keys: int, out_NHK) -> bool:
    """Token n of q against all of keys[n] and values[n].

    False for caches that need a call each: not in bfloat16, or with more query heads to a KV head than the kernel's.
    """
    (_, H, K), k_GSK = q_NHK.shape, max(keys, key=len_of)
    G = k_GSK.shape[0]
    if k_GSK.dtype != BFLOAT16 or K % 32 or H // G > HEADS:
        return False
    if any(each.dtype is not k_GSK.dtype or each.strides[1:] != (2 * K, 2) for each in (*keys, *values)):
        return False
    longest = k_GSK[:1].view(np.int32).swapaxes(0, 1)  # a KV head of the longest: the others are shorter, elsewhere
    address_2N1 = np.array([each.__array_interface__["data"][0] for each in (*keys, *values)]).reshape(2, -1, 1)
    stride_2N1 = np.array([each.strides[0] for each in (*keys, *values)]).reshape(2, -1, 1)
    address_h2 = np.ascontiguousarray((address_2N1 + stride_2N1 * np.arange(G)).reshape(2, -1).T)
    keys_N = np.array([len_of(k_GSK) for k_GSK in keys])
    rows, sixteens = (PAIRS,) * (H // G), (PAIRS,) * (K // 32)
    together((longest, longest), address_h2, keys_N, chunk_keys, G, q_NHK, rows, sixteens, out_NHK)
    return True


def len_of(k_GSK) -> int:
    return k_GSK.shape[1]


class Whereabouts(NamedTuple):
    """Where the caches of N sequences lie, as kernels take it.

    halves       keys of one head of the longest as bfloat16, twice: the others are shorter, elsewhere
    pairs        the same in pairs, slots first, twice
    address_LN   of each layer's array kv_2GNK
    stride_N2    bytes from keys to values, and from a head to the next
    keys_N       how many each will hold with its new one
    """

    halves: tuple
    pairs: tuple
    address_LN: np.ndarray
    stride_N2: np.ndarray
    keys_N: np.ndarray


def whereabouts(caches: Sequence[Any], first: int, last: int) -> Whereabouts | None:
    """Of layers first to last - 1; None for caches that are not all in bfloat16, or have no room.

    Looking at an array costs 0.3 us, so the addresses of a cache are kept as long as it has the same arrays.
    """
    if any(cache.format != "bf16" or cache.length >= cache.capacity for cache in caches):
        return None
    for cache in caches:
        arrays, _ = PLACES.get(cache, ((), None))
        if len(arrays) != len(cache.layers) or not all(map(is_, arrays, cache.layers)):
            addresses_L = np.array([kv_2GNK.__array_interface__["data"][0] for kv_2GNK in cache.layers])
            PLACES[cache] = list(cache.layers), (addresses_L, cache.layers[0].strides[:2])
    found = [PLACES[cache][1] for cache in caches]
    head_11SK = max((cache.layers[first] for cache in caches), key=lambda kv_2GNK: kv_2GNK.shape[2])[:1, :1]
    pairs_S1j = head_11SK[0].view(np.int32).swapaxes(0, 1)
    return Whereabouts(
        (head_11SK.view(np.uint16),) * 2,
        (pairs_S1j,) * 2,
        np.stack([addresses_L[first:last] for addresses_L, _ in found], axis=1),
        np.array([strides for _, strides in found]),
        np.array([cache.length + 1 for cache in caches]),
    )


PLACES: WeakKeyDictionary = WeakKeyDictionary()


@kernel
@allocating
def addresses(address_N, stride_N2, G):
    """Of keys and values of each head h = n G + g."""
    address_h2 = np.empty((address_N.size * G, 2), np.int64)
    for h in range(len(address_h2)):
        n, g = h // G, h % G
        for which in range(2):
            address_h2[h, which] = address_N[n] + which * stride_N2[n, 0] + g * stride_N2[n, 1]
    return address_h2


@kernel
def write_together(k_NGK, v_NGK, halves, address_h2, keys_N):
    """Each token's keys and values as the last of its own cache."""
    G = k_NGK.shape[1]
    for h in range(len(address_h2)):
        n, g = h // G, h % G
        k_11SK, v_11SK = of_layer(halves, address_h2, h)
        write_row(k_NGK[:, g : g + 1], n, 0, k_11SK, None, 0, keys_N[n] - 1)
        write_row(v_NGK[:, g : g + 1], n, 0, v_11SK, None, 0, keys_N[n] - 1)


@kernel
@allocating
def heads_together(state, threads, longest, address_h2, keys_N, chunk_keys, G, q_NHK, rows, sixteens, out_NHK):
    """A *head* is a KV head of a sequence, h = n G + g; each has as many tasks as chunks of keys."""
    heads, R, K, no_lse = len(address_h2), len(rows), q_NHK.shape[2], np.empty((0, 0), np.float32)
    chunk_h, most = np.zeros(heads + 1, np.int64), 1
    for h in range(heads):
        chunks = (keys_N[h // G] + chunk_keys - 1) // chunk_keys
        chunk_h[h + 1], most = chunk_h[h] + chunks, max(chunks, most)
    room = heads if most > 1 else 0  # else heads finish themselves
    m_h1Cn, part_h1CnK = np.empty((room, 1, most, R), np.float32), np.empty((room, 1, most, R, K + LANES), np.float32)
    launch_heads(
        state, threads, chunk_h[heads], longest, address_h2, keys_N, chunk_h, chunk_keys, G, q_NHK, rows, sixteens,
        m_h1Cn, part_h1CnK, out_NHK, no_lse,
    )  # fmt: skip
    for h in range(room):
        n, g, chunks = h // G, h % G, chunk_h[h + 1] - chunk_h[h]
        if chunks > 1:
            out_1RK = out_NHK[n : n + 1, g * R : g * R + R]
            finish_parts(m_h1Cn[h, :, :chunks], part_h1CnK[h, :, :chunks], longest[0], out_1RK, no_lse)


@kernel
@allocating
def attend_heads(
    begin, end, longest, address_h2, keys_N, chunk_h, chunk_keys, G, q_NHK, rows, sixteens,
    m_h1Cn, part_h1CnK, out_NHK, no_lse,
):  # fmt: skip
    """Tasks begin .. end - 1, of which head h has those from chunk_h[h] on."""
    R, cut, some_memory = len(rows), (np.int64(0), chunk_keys), memory(q_NHK, longest[0], chunk_keys, rows)
    no_m_GCn, no_part_GCnK = np.empty((0, 0, R), np.float32), np.empty((0, 0, R, 0), np.float32)
    for h in range(address_h2.shape[0]):
        some, last = max(begin - chunk_h[h], 0), min(end, chunk_h[h + 1]) - chunk_h[h]
        if some < last:
            n, g = h // G, h % G
            k_SGj, v_SGj = of_layer(longest, address_h2, h)
            q_1RK, out_1RK = q_NHK[n : n + 1, g * R : g * R + R], out_NHK[n : n + 1, g * R : g * R + R]
            m_GCn, part_GCnK = (m_h1Cn[h], part_h1CnK[h]) if len(m_h1Cn) else (no_m_GCn, no_part_GCnK)
            token_tasks(
                some, last, q_1RK, k_SGj[: keys_N[n]], v_SGj[: keys_N[n]], cut, rows, sixteens,
                m_GCn, part_GCnK, out_1RK, no_lse, some_memory,
            )  # fmt: skip


launch_heads, together = launcher(attend_heads), with_team(heads_together)
