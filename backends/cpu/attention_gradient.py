"""The way back through `attention`: weights are computed again, a few rows at a time, so memory stays linear in T.

A row is one query head of one token; the R heads that share a KV head are rows against the same keys. For a block of
rows, against all keys that it sees:

    s  = q k^T                       p  = softmax(s)
    dp = dout v^T                    ds = p (dp - sum(p dp))
    dq = ds k        dk += ds^T q    dv += p^T dout

Five products where the way there has two; all in tiles of 16 x 16 sums in registers, and s and dp lie in the near
caches between them. A KV head of a sequence belongs to one thread, for dk and dv collect from all rows.

                                a sequence of 256 tokens, 6 query heads, 2 KV heads, head_dim 32, one thread
    v1  the definition, NumPy       3.6  ms
    v2  tiles                       0.93
"""

from __future__ import annotations

import numpy as np

from backends.cpu.compiling import allocating, inner, kernel
from backends.cpu.exp import exp
from backends.cpu.rows import F32, plain
from backends.cpu.simd import LANES, fill, fma, larger, largest_of, load, load_part, store, store_part, sum_of, zeros
from backends.cpu.team import shared
from backends.cpu.tiles import load_tile, outer_f32, store_tile, tile, transposed

STRIPS = 1 << 17  # numbers in s, and in dp: the rows of a block times the keys that there are, about
MOST_ROWS = 128


def attention_gradient(backend, d_out_THK, q_THK, keys, values, *, spans, window=None):
    q_THK, d_out_THK = plain(q_THK), plain(d_out_THK)
    d_q_THK, d_keys, d_values = np.empty(q_THK.shape, F32), [], []
    for (start, stop, _), k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        G, S, _ = k_GSK.shape
        d_k_GSK, d_v_GSK = np.empty(k_GSK.shape, F32), np.empty(v_GSK.shape, F32)
        rows = min(MOST_ROWS, max(LANES, STRIPS // S // LANES * LANES))
        heads_backwards(
            G, d_out_THK[start:stop], q_THK[start:stop], np.ascontiguousarray(k_GSK, F32),
            np.ascontiguousarray(v_GSK, F32), min(window or S, S), rows, d_q_THK[start:stop], d_k_GSK, d_v_GSK,
        )  # fmt: skip
        d_keys.append(d_k_GSK)
        d_values.append(d_v_GSK)
    return d_q_THK, d_keys, d_values


@shared
@kernel
@allocating
def heads_backwards(first, last, d_out_THK, q_THK, k_GSK, v_GSK, window, rows, d_q_THK, d_k_GSK, d_v_GSK):
    """KV heads first .. last - 1 of one sequence, whose T queries are the last of its S tokens."""
    (T, H, K), (G, S, _) = q_THK.shape, k_GSK.shape
    R, width, blocks = H // G, (K + LANES - 1) // LANES * LANES, (S + LANES - 1) // LANES
    rows = min(rows, (T * R + LANES - 1) // LANES * LANES)
    scale = np.float32(1 / np.sqrt(K))
    k_sK, v_sK = np.zeros((blocks * LANES, width), np.float32), np.zeros((blocks * LANES, width), np.float32)
    k_BKs, v_BKs = np.empty((blocks, width, LANES), np.float32), np.empty((blocks, width, LANES), np.float32)
    d_k_sK, d_v_sK = np.empty((blocks * LANES, width), np.float32), np.empty((blocks * LANES, width), np.float32)
    q_nK, d_out_nK = np.empty((rows, width), np.float32), np.empty((rows, width), np.float32)
    d_q_nK = np.empty((rows, width), np.float32)
    p_ns, dp_ns = np.empty((rows, blocks * LANES), np.float32), np.empty((rows, blocks * LANES), np.float32)
    p_nBs, ds_nBs = p_ns.reshape(rows, blocks, LANES), dp_ns.reshape(rows, blocks, LANES)

    for g in range(first, last):
        pack(k_GSK[g], k_sK, k_BKs)
        pack(v_GSK[g], v_sK, v_BKs)
        d_k_sK[:] = 0
        d_v_sK[:] = 0
        for begin in range(0, T * R, rows):
            count = min(rows, T * R - begin)
            past = S - T + begin // R  # keys before the first row's own
            b0 = max(0, past + 1 - window) // LANES
            b1 = (S - T + (begin + count - 1) // R) // LANES + 1
            whole = (count + LANES - 1) // LANES * LANES
            for n in range(whole):
                t, h = (begin + n) // R, g * R + (begin + n) % R
                for k in range(0, width, LANES):
                    query, d_out = zeros(), zeros()  # rows that only fill up add nothing to anything
                    if n < count:
                        query, d_out = load_part(q_THK, (t, h, k), K - k), load_part(d_out_THK, (t, h, k), K - k)
                    store(q_nK, (n, k), query * fill(scale))
                    store(d_out_nK, (n, k), d_out)
            for b in range(b0, b1):
                for n in range(0, whole, LANES):
                    rows_by_keys(q_nK, n, k_BKs, b, K, p_ns)
                    rows_by_keys(d_out_nK, n, v_BKs, b, K, dp_ns)
            for n in range(whole):
                place = S - T + (begin + min(n, count - 1)) // R
                softmax_row(p_ns, dp_ns, n, b0 * LANES, b1 * LANES, max(0, place + 1 - window), place + 1)
            for k in range(0, width, LANES):
                for n in range(0, whole, LANES):
                    keys_summed(dp_ns, n, b0 * LANES, min(b1 * LANES, S), k_sK, k, d_q_nK)
                for b in range(b0, b1):
                    rows_summed(ds_nBs, b, whole, q_nK, k, d_k_sK)
                    rows_summed(p_nBs, b, whole, d_out_nK, k, d_v_sK)
            for n in range(count):
                t, h = (begin + n) // R, g * R + (begin + n) % R
                for k in range(0, K, LANES):
                    store_part(d_q_THK, (t, h, k), load(d_q_nK, (n, k)) * fill(scale), K - k)
        d_k_GSK[g] = d_k_sK[:S, :K]
        d_v_GSK[g] = d_v_sK[:S, :K]


@inner
def pack(x_SK, x_sK, x_BKs):
    """All keys (or values) of a head: filled up to whole tiles; and turned, 16 of them side by side in the lanes."""
    S, K = x_SK.shape
    for s in range(S):
        for k in range(0, K, LANES):
            store(x_sK, (s, k), load_part(x_SK, (s, k), K - k))
    for b in range(x_BKs.shape[0]):
        for k in range(0, x_BKs.shape[1], LANES):
            turned = transposed(load_tile(x_sK, (b * LANES, k)))
            for n in range(LANES):
                store(x_BKs, (b, k + n, 0), turned[n])


@inner
def rows_by_keys(x_nK, n, y_BKs, b, K, out_ns):
    """out[n + r, s] = x[n + r] . y[s], for 16 rows and the 16 keys of block b."""
    sums = tile(16, zeros())
    for k in range(K):
        sums = outer_f32(sums, load(y_BKs, (b, k, 0)), x_nK, (n, k))
    store_tile(out_ns, (n, b * LANES), sums)


@inner
def keys_summed(x_ns, n, s0, s1, y_sK, k, out_nK):
    """out[n + r] = sum over s of x[n + r, s] y[s], for 16 rows and 16 of the numbers."""
    sums = tile(16, zeros())
    for s in range(s0, s1):
        sums = outer_f32(sums, load(y_sK, (s, k)), x_ns, (n, s))
    store_tile(out_nK, (n, k), sums)


@inner
def rows_summed(x_nBs, b, rows, y_nK, k, out_sK):
    """out[s] += sum over the rows of x[n, s] y[n], for the 16 keys of block b and 16 of the numbers."""
    sums = load_tile(out_sK, (b * LANES, k))
    for n in range(rows):
        sums = outer_f32(sums, load(y_nK, (n, k)), x_nBs, (n, b))
    store_tile(out_sK, (b * LANES, k), sums)


@inner
def softmax_row(p_ns, dp_ns, n, s0, s1, low, high):
    """Scores to weights p, and dp to ds, of one row, which sees the keys low .. high - 1 of s0 .. s1 - 1."""
    for s in range(s0, low):
        p_ns[n, s] = -np.inf
    for s in range(high, s1):
        p_ns[n, s] = -np.inf
    top = load(p_ns, (n, s0))
    for s in range(s0 + LANES, s1, LANES):
        top = larger(load(p_ns, (n, s)), top)
    m, total, dot = fill(largest_of(top)), zeros(), zeros()
    for s in range(s0, s1, LANES):
        e = exp(load(p_ns, (n, s)) - m)
        store(p_ns, (n, s), e)
        total, dot = total + e, fma(e, load(dp_ns, (n, s)), dot)
    share = np.float32(1) / sum_of(total)
    mean = fill(sum_of(dot) * share)
    for s in range(s0, s1, LANES):
        p = load(p_ns, (n, s)) * fill(share)
        store(p_ns, (n, s), p)
        store(dp_ns, (n, s), p * (load(dp_ns, (n, s)) - mean))
