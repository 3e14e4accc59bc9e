"""One token's attention to chunks of its keys: what decoding does. Nothing of the cache is turned, packed or copied.

    score[s, r]    = k[s] . q[r] / sqrt(K)                keys are the rows of a tile, two lanes each the 8 heads r
    weight[s, r]   = exp(score[s, r] - m[r])              m[r] is the largest of the chunk
    part[r]        = sum over s of weight[s, r] * v[s]    heads are the rows of a tile, and its lanes are channels

Bytes that must move: K and V of a chunk, 4 K a key, once for all R heads. A core has 14 ns for the 256 of a key and KV
head of the 0.5B, if two cores read 36 GB/s. attention_block.py, which this replaces for a bfloat16 cache and up to 8
heads that share a KV head, makes its keys the lanes, so it has to turn them, and pair its values, for one token's use.

                                              a key and KV head of 7 query heads, ns on one core    cache    memory
    v1  attention_block.py                    turn 5.3, pair 2.3, scores 3.9, softmax 1.8, mix 3.8   17.6      21
    v2  heads are lanes                       scores 5.6, softmax 2.1, mix 4.8                       12.5
    v3  values paired by one instruction      (in-lane, the channels' order is undone in `finish`)   11.9
    v4  keys' distance known when compiling   the next tile's loads begin before this one is done    10.7
    v5  sent for in the order in which they lie, 8 KB ahead                                                   17
    v6  a cache in large pages                                                                                15

                                              newer cores
    v7  two of a key's pairs at once          a head's lanes take one pair each: half the products       11.1 -> 9.1
    v8  weighed just before they are mixed    exp of 32 keys at a time; the first values come meanwhile       9.6 -> 8.4

Two threads, 8192 keys, in turns: v7 12.0, v8 10.7, which is 48 GB/s, all that memory gave; in part by chunks of 1024
keys, which both threads get as many of (of 32 chunks of 512 keys one got 17).
"""

from __future__ import annotations

import numpy as np

from backends.cpu.attention_block import LOWEST, finish, swap8
from backends.cpu.attention_numbers import even, odd, pack_query, send_for
from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.exp import exp
from backends.cpu.simd import (
    LANES,
    assume,
    bf16_pairs,
    fill,
    interleave_high,
    interleave_low,
    larger,
    load,
    store,
    store_part,
    zeros,
)  # fmt: skip
from backends.cpu.tiles import load_rows, outer_bf16, outer_bf16_twice, store_tile, tile

HEADS = 8  # lanes; with fewer heads the others compute what nobody reads
KEYS = 16  # of a tile
AHEAD = 64  # keys (values) further on are sent for: 32 are as fast, 128 are 15 % slower
BLOCK = 32  # keys that are weighed and mixed before the next


@kernel
@allocating
def attend_token(begin, end, q_1HK, k_SGj, v_SGj, cut, rows, sixteens, m_GCn, part_GCnK, out_1HK, lse_1H):
    """Tasks begin .. end - 1 of one token: each a KV head's chunk of keys.

    k_SGj, v_SGj   pairs of neighbours in bfloat16, as int32; of one KV head they must lie end to end
    cut            (the first key that is seen, keys of a chunk: a multiple of 16)
    rows           a tuple with an item for each of the query heads that share a KV head, HEADS at most
    sixteens       a tuple with an item for each 16 of the int32 that a key is
    m_GCn ...      as in attention_block.py
    """
    some_memory = memory(q_1HK, k_SGj, cut[1], rows)
    token_tasks(begin, end, q_1HK, k_SGj, v_SGj, cut, rows, sixteens, m_GCn, part_GCnK, out_1HK, lse_1H, some_memory)


@inner
@allocating
def memory(q_1HK, k_SGj, chunk_keys, rows):
    """What a thread needs for any number of tasks: a query twice, scores, weights, the last keys and values, a part."""
    R, K, J = len(rows), q_1HK.shape[2], k_SGj.shape[2]
    q_rj, q_jr = np.empty((R, J), np.int32), np.zeros((J // 2, 2 * HEADS), np.int32)
    score_sr, weight_pr = np.empty((chunk_keys, HEADS), np.float32), np.empty((BLOCK // 2, HEADS), np.int32)
    k_tail, v_tail = np.empty((KEYS, 1, J), np.int32)[:, 0], np.empty((KEYS, 1, J), np.int32)[:, 0]  # as k_SGj[:, g]
    own_m_Cn, own_part_CnK = np.empty((1, R), np.float32), np.empty((1, R, K + LANES), np.float32)
    return q_rj, q_jr, score_sr, weight_pr, k_tail, v_tail, own_m_Cn, own_part_CnK


@inner
def token_tasks(
    begin, end, q_1HK, k_SGj, v_SGj, cut, rows, sixteens, m_GCn, part_GCnK, out_1HK, lse_1H, some_memory
):  # fmt: skip
    q_rj, q_jr, score_sr, weight_pr, k_tail, v_tail, own_m_Cn, own_part_CnK = some_memory
    S, _, J = k_SGj.shape
    R, (first_key, chunk_keys) = len(rows), cut
    chunks = (S - first_key + chunk_keys - 1) // chunk_keys

    for task in range(begin, end):
        g, s0 = task // chunks, first_key + task % chunks * chunk_keys
        keys = min(chunk_keys, S - s0)
        whole = keys // KEYS * KEYS
        k_sj, v_sj = k_SGj[s0:, g], v_SGj[s0:, g]
        m_n, part_nK = (
            (own_m_Cn[0], own_part_CnK[0]) if chunks == 1 else (m_GCn[g, task % chunks], part_GCnK[g, task % chunks])
        )

        for r in range(R):
            pack_query(q_1HK, 0, g * R + r, k_sj, q_rj, r)
            for j in range(J):
                q_jr[j // 2, 2 * r + j % 2] = q_rj[r, j]
        score(k_sj, whole, q_jr, sixteens, score_sr)
        if keys > whole:
            fill_up(k_sj, whole, keys, k_tail)
            fill_up(v_sj, whole, keys, v_tail)
            score(k_tail, len(k_tail), q_jr, sixteens, score_sr[whole:])
            score_sr[keys : whole + KEYS] = -np.inf
        m, part_nK[:] = largest(score_sr, whole + KEYS * (keys > whole), v_sj), 0
        total = mix(score_sr, m, zeros(), weight_pr, v_sj, whole, rows, part_nK)
        if keys > whole:
            total = mix(score_sr[whole:], m, total, weight_pr, v_tail, len(v_tail), rows, part_nK)
        store_part(m_n, 0, m, R)
        store(score_sr, (0, 0), total + swap8(total, total))
        for r in range(R):
            part_nK[r, part_nK.shape[1] - LANES] = score_sr[0, r]
        if chunks == 1:
            finish(own_m_Cn, own_part_CnK, 0, R, k_SGj, g, out_1HK, lse_1H)


@inner
def fill_up(x_sj, first, last, tail_sj):
    """The last keys, or values, of which there are fewer than a tile's, and zeros behind them."""
    tail_sj[:] = 0
    for s in range(first, last):
        for j in range(tail_sj.shape[1]):
            tail_sj[s - first, j] = x_sj[s, j]


@inner
def score(k_sj, keys, q_jr, sixteens, score_sr):
    """score[s, r] = k[s] . q[r] for whole tiles; keys further on are sent for."""
    assume(k_sj.strides[0] == 64 * len(sixteens))
    for s in range(0, keys, KEYS):
        sums = tile(16, zeros())
        for j in range(0, 16 * len(sixteens), 2):
            sums = outer_bf16_twice(sums, load(q_jr, (j // 2, 0)), k_sj, (s, j))
            send_for(k_sj, s + AHEAD, j)
            send_for(k_sj, s + AHEAD, j + 1)
        for n in range(0, KEYS, 2):  # a head's two lanes to one; two keys fill a vector
            store(score_sr, (s + n, 0), even(sums[n], sums[n + 1]) + odd(sums[n], sums[n + 1]))


@inner
def largest(score_sr, keys, v_sj):
    """Each head's largest score, in both halves of a vector. Meanwhile the first values are sent for."""
    a, b = fill(LOWEST), fill(LOWEST)
    for s in range(0, keys, 4):
        a, b = larger(load(score_sr, (s, 0)), a), larger(load(score_sr, (s + 2, 0)), b)
        send_for(v_sj, 0, s // 4)
    m = larger(a, b)
    return larger(m, swap8(m, m))


@inner
def mix(score_sr, m, total, weight_pr, v_sj, keys, rows, part_nK):
    """part[r] += sum over s of exp(score[s, r] - m[r]) * v[s], and what the sum of exp is now, two keys in a vector.

    A block of keys at a time, so that exp, which needs nothing from memory, does not keep memory idle for long.
    """
    for first in range(0, keys, BLOCK):
        last = min(first + BLOCK, keys)
        total = total + weigh(score_sr, m, first, last, weight_pr)
        line = 0
        for j in range(0, v_sj.shape[1], LANES):
            low, high = load_rows(rows, part_nK, (0, 2 * j)), load_rows(rows, part_nK, (0, 2 * j + LANES))
            for s in range(first, last, 4):
                for n in range(2):
                    a, b = load(v_sj, (s + n, j)), load(v_sj, (s + n + 2, j))
                    pair = ((s - first) // 2 + n,)
                    low = outer_bf16(low, interleave_low(a, b), weight_pr, pair)
                    high = outer_bf16(high, interleave_high(a, b), weight_pr, pair)
                    send_for(v_sj, first + AHEAD, line)
                    send_for(v_sj, first + AHEAD, line + 1)
                    line += 2
            store_tile(part_nK, (0, 2 * j), low)
            store_tile(part_nK, (0, 2 * j + LANES), high)
    return total


@inner
def weigh(score_sr, m, first, last, weight_pr):
    """weight = exp(score - m), two keys in a vector. Keys 4i and 4i + 2 become a pair, 4i + 1 and 4i + 3. Their sum."""
    sum_a, sum_b = zeros(), zeros()
    for s in range(first, last, 4):
        a, b = exp(load(score_sr, (s, 0)) - m), exp(load(score_sr, (s + 2, 0)) - m)
        sum_a, sum_b = sum_a + a, sum_b + b
        store(weight_pr, ((s - first) // 2, 0), bf16_pairs(a, b))
    return sum_a + sum_b
