"""A block of attention: some rows of queries against a stretch of keys, with nothing larger than a tile in between.

A row is one query head of one token. All R query heads that share a KV head, of as many tokens as a block holds, are
rows against the same keys: GQA reads those once. The keys are walked in tiles of `KEYS`; for each tile

    pack        keys turned, so that 16 of them lie side by side in the lanes of a vector; values as they are
    scores      rows times keys: sums in registers, none across lanes (the loop of tiles.py)
    softmax     online: with a new largest score, what was summed so far shrinks by exp(old - new)
    mix         weights times values: the same loop

so scores never leave the first-level cache, and memory is linear in the context. What a block leaves is a *part*:

    m_n         each row's largest score
    part_nK     each row's sum of exp(score - m) * value, and behind it, in 16 lanes, that of exp(score - m)

Parts of the same rows against other keys merge exactly, in `finish`. If asked, it leaves m + log(sum of exp) besides:
then the result itself is a part of something larger, see tinyqwen/blocks/attention_parts.py.

Numbers are multiplied as float32, or as pairs of bfloat16 that share a lane: i and i + 16 of each run of 32. Keys and
values that are bfloat16 in memory come as int32, which are pairs of neighbours: such keys need nothing but the turn.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.attention_numbers import (
    add_outer,
    lanes_of,
    pack_keys,
    pack_query,
    pack_values,
    pack_weights,
    scaled,
    scratch,
    send_for,
    write_row,
)  # fmt: skip
from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.exp import exp
from backends.cpu.simd import LANES, fill, fma, larger, load, load_part, shuffle, store, store_part, sum_of, zeros
from backends.cpu.tiles import add_shrunk, store_tile, tile

KEYS = 256  # keys in a tile: 128 are 5 % slower (more often a largest score), and more leave the second-level cache
LOWEST = np.float32(-3e38)  # below all scores, yet finite: exp(-inf - LOWEST) is 0, exp(-inf + inf) would be NaN
swap1, swap2, swap4, swap8 = (shuffle(tuple(lane ^ n for lane in range(16))) for n in (1, 2, 4, 8))


@kernel
@allocating
def attend_blocks(
    begin, end, q_THK, k_SGK, v_SGK, k_scale_GS, v_scale_GS, cut, rows, m_GCn, part_GCnK, out_THK, lse_TH
):
    """Tasks begin .. end - 1 of one sequence: each a block of rows of a KV head against a chunk of keys.

    q_THK, out_THK   the sequence's own rows
    k_scale_GS ...   what a key or value is multiplied by (int8), or None
    cut              (rows of a block, the first key that is seen, keys of a chunk, how many keys lie before the first
                     row's own place, how many keys a row sees)
    rows             a tuple with an item for each row of a tile: of floats, or of integers to multiply in pairs
    m_GCn ...        where parts are left, to be merged; empty if all keys are one chunk: then blocks finish themselves
    lse_TH           where the log of the sum of exp is left; empty if nobody wants it
    """
    (T, H, K), (S, G, _) = q_THK.shape, k_SGK.shape
    R, height, width = H // G, len(rows), (K + LANES - 1) // LANES * LANES
    block_rows, first_key, chunk_keys, past, window = cut
    blocks, chunks = (T * R + block_rows - 1) // block_rows, (S - first_key + chunk_keys - 1) // chunk_keys

    room = (min(block_rows, T * R) + height - 1) // height * height
    q_nk, stage_sK = scratch(rows, (room, width)), scratch(rows, (LANES, width))
    k_Bks, v_sK = scratch(rows, (KEYS // LANES, width, LANES)), scratch(rows, (KEYS, width))
    score_rs, weight_rs = np.empty((height, KEYS), np.float32), scratch(rows, (height, KEYS))
    shrink_r = np.empty(LANES, np.float32)
    own_m_Cn, own_part_CnK = np.empty((1, room), np.float32), np.empty((1, room, width + LANES), np.float32)

    for task in range(begin, end):
        g, block, chunk = task // (blocks * chunks), task // chunks % blocks, task % chunks
        block = block // 2 if block % 2 == 0 else blocks - 1 - block // 2  # short and long ones in turn
        first = block * block_rows
        count = min(block_rows, T * R - first)
        s0 = max(first_key + chunk * chunk_keys, past + first // R + 1 - window)
        s1 = min(first_key + (chunk + 1) * chunk_keys, past + (first + count - 1) // R + 1, S)
        m_n, part_nK = (own_m_Cn[0], own_part_CnK[0]) if chunks == 1 else (m_GCn[g, chunk], part_GCnK[g, chunk])
        k_SK, v_SK = k_SGK[:, g], v_SGK[:, g]

        whole = (count + height - 1) // height * height
        for n in range(whole):
            row = first + min(n, count - 1)  # rows that fill the last tile up repeat the last one
            pack_query(q_THK, row // R, g * R + row % R, k_SK, q_nk, n)
            m_n[n] = LOWEST
            for k in range(0, width + LANES, LANES):
                store(part_nK, (n, k), zeros())

        for s in range(s0, s1, KEYS):
            keys = min(KEYS, s1 - s)
            pack_keys(k_SK, s, keys, k_Bks, stage_sK)
            packed_v_sK = pack_values(v_SK, s, keys, v_sK)
            for n in range(0, whole, height):
                place, last_place = past + (first + n) // R, past + (first + min(n + height, count) - 1) // R
                seen = min(keys, last_place + 1 - s)
                if seen > 0 and s + keys > place + 1 - window:
                    ahead = s + KEYS if n == 0 else 0
                    score_tile(q_nk, n, k_Bks, K, seen, rows, score_rs, k_SK, ahead)
                    mask_tile(score_rs, seen, first + n, R, past - s, window, k_scale_GS, s, g)
                    softmax_tile(score_rs, seen, v_scale_GS, s, g, m_n, part_nK, n, shrink_r, weight_rs)
                    mix_tile(weight_rs, packed_v_sK, seen, rows, shrink_r, part_nK, n, v_SK, ahead)
        if chunks == 1:
            finish(own_m_Cn, own_part_CnK, first, count, k_SGK, g, out_THK, lse_TH)


@inner
def score_tile(q_nk, n, k_Bks, K, seen, rows, score_rs, k_SK, ahead):
    """score[r, s] = q[n + r] . k[s], for whole vectors of keys; those from `ahead` on (if not 0) are sent for."""
    line = 0
    for b in range((seen + LANES - 1) // LANES):
        sums = tile(rows, zeros())
        if ahead:
            for k in range(lanes_of(K, k_Bks)):
                sums = add_outer(sums, load(k_Bks, (b, k, 0)), q_nk, (n, k))
                send_for(k_SK, ahead, line)
                line += 1
        else:
            for k in range(lanes_of(K, k_Bks)):
                sums = add_outer(sums, load(k_Bks, (b, k, 0)), q_nk, (n, k))
        store_tile(score_rs, (0, b * LANES), sums)


@inner
def mask_tile(score_rs, seen, first, R, past, window, k_scale_GS, s0, g):
    """Minus infinity where a row does not see a key; and, for int8, the keys' scales."""
    run = (seen + 31) // 32 * 32
    for r in range(score_rs.shape[0]):
        if k_scale_GS is not None:
            for s in range(0, seen, LANES):
                store(score_rs, (r, s), scaled(load(score_rs, (r, s)), k_scale_GS, g, s0 + s, seen - s))
        place = past + (first + r) // R  # in this tile
        for s in range(max(0, place + 1), run):
            score_rs[r, s] = -np.inf
        for s in range(seen, run):  # rows that only fill up
            score_rs[r, s] = -np.inf
        for s in range(0, min(place + 1 - window, run)):
            score_rs[r, s] = -np.inf


@inner
def softmax_tile(score_rs, seen, v_scale_GS, s0, g, m_n, part_nK, n, shrink_r, weight_rs):
    """Scores to weights exp(score - m). m is the largest yet; `shrink` is what its growth makes of the sums so far."""
    height, run = score_rs.shape[0], (seen + 31) // 32 * 32
    for r in range(height):
        a, b = load(score_rs, (r, 0)), load(score_rs, (r, 16))
        for s in range(32, run, 32):
            a, b = larger(load(score_rs, (r, s)), a), larger(load(score_rs, (r, s + 16)), b)
        a = larger(a, b)
        a = larger(a, swap8(a, a))
        a = larger(a, swap4(a, a))
        a = larger(a, swap2(a, a))
        store_part(shrink_r, r, larger(a, swap1(a, a)), 1)
    old = load_part(m_n, n, height)
    new = larger(load_part(shrink_r, 0, height), old)  # where the largest is NaN, the old one: NaN shows in the weights
    store_part(m_n, n, new, height)
    store(shrink_r, 0, exp(old - new))

    end = part_nK.shape[1] - LANES
    for r in range(height):
        m, sum_a, sum_b = fill(m_n[n + r]), zeros(), zeros()
        for s in range(0, run, 32):
            a, b = exp(load(score_rs, (r, s)) - m), exp(load(score_rs, (r, s + 16)) - m)
            sum_a, sum_b = sum_a + a, sum_b + b
            a, b = scaled(a, v_scale_GS, g, s0 + s, seen - s), scaled(b, v_scale_GS, g, s0 + s + 16, seen - s - 16)
            pack_weights(a, b, weight_rs, r, s)
        store(part_nK, (n + r, end), fma(load(part_nK, (n + r, end)), fill(shrink_r[r]), sum_a + sum_b))


@inner
def mix_tile(weight_rs, v_sK, seen, rows, shrink_r, part_nK, n, v_SK, ahead):
    """part[n + r] = part[n + r] * shrink[r] + sum over s of weight[r, s] * v[s]; the next values are sent for."""
    line = 0
    for k in range(0, part_nK.shape[1] - LANES, LANES):
        sums = tile(rows, zeros())
        if ahead:
            for s in range(lanes_of(seen, weight_rs)):
                sums = add_outer(sums, load(v_sK, (s, k)), weight_rs, (0, s))
                send_for(v_SK, ahead, line)
                line += 1
        else:
            for s in range(lanes_of(seen, weight_rs)):
                sums = add_outer(sums, load(v_sK, (s, k)), weight_rs, (0, s))
        store_tile(part_nK, (n, k), add_shrunk(sums, part_nK, (n, k), shrink_r))


@inner
def finish(m_Cn, part_CnK, first, count, k_SGK, g, out_THK, lse_TH):
    """Merge parts of the same rows, and write what they come to: sum of exp * value / sum of exp; nothing seen is 0."""
    K, R, end = out_THK.shape[2], out_THK.shape[1] // k_SGK.shape[1], part_CnK.shape[2] - LANES
    for n in range(count):
        top = LOWEST
        for c in range(m_Cn.shape[0]):
            top = max(top, m_Cn[c, n])
        for c in range(m_Cn.shape[0]):
            share = exp(fill(m_Cn[c, n]) - fill(top))
            for k in range(0, end + LANES, LANES):
                more = load(part_CnK, (c, n, k)) * share
                store(part_CnK, (0, n, k), more if c == 0 else load(part_CnK, (0, n, k)) + more)
        total = sum_of(load(part_CnK, (0, n, end)))
        share = fill(np.float32(0) if total == 0 else np.float32(1) / total)
        t, h = (first + n) // R, g * R + (first + n) % R
        if lse_TH.shape[0]:
            lse_TH[t, h] = top + np.log(total)
        for k in range(0, K, 32):
            low = load(part_CnK, (0, n, k)) * share
            high = load(part_CnK, (0, n, k + 16)) * share  # of what lies behind, if K ends here
            write_row(low, high, k_SGK, out_THK, t, h, k)


@kernel
def finish_parts(m_GCn, part_GCnK, k_SGK, out_THK, lse_TH):
    """Merge all chunks of a sequence whose rows are one block."""
    for g in range(m_GCn.shape[0]):
        count = out_THK.shape[0] * (out_THK.shape[1] // m_GCn.shape[0])
        finish(m_GCn[g], part_GCnK[g], 0, count, k_SGK, g, out_THK, lse_TH)
