"""Dual Chunk Attention: a text far longer than those a model was trained on, at distances that it knows.

RoPE shows a query how far away each key is, and beyond the longest distance of training that means nothing to the
model. So the text is cut into chunks of L = chunk_size - local_size tokens. A key is turned by its place in its chunk,
once and for all; a query three ways, by how far away the chunk is that it looks at:

    keys       j mod L
    queries    i mod L                           towards their own chunk            intra
               min(i mod L + L, chunk_size)      towards the chunk before           succ (successive)
               min(2 L - 1, chunk_size)          towards all chunks before that     inter

Each way is attention to a stretch of keys, and the parts merge into one softmax (attention_parts.py). With
chunk_size 12 and local_size 4, so L = 8, token 20 finds the keys 0 to 20 at these distances:

    12 11 10 9 8 7 6 5   12 11 10 9 8 7 6 5   4 3 2 1 0

Within the chunk, and up to local_size tokens back across its edge, distances are true. Beyond they say "far": not how
far, but never more than chunk_size, which was seen in training. A text of up to L tokens is plain attention. There is
no new parameter, and the frequencies stay as they are.

Temperature: a softmax over more keys is flatter. With original_max_position_embeddings set, the scores of a text of n
tokens grow: queries and keys, by their tables, by max(1, 0.1 ln(n / original_max_position_embeddings) + 1) each, which
is YaRN's attention factor. A key keeps the one that it was stored with.

Source: An et al. 2024, "Training-Free Long-Context Scaling of Large Language Models"; Qwen2 technical report, section
3.2; vLLM, dual_chunk_flash_attn.py and dual_chunk_rope.py.
"""

import numpy as np

from backends.interface import Cost, nbytes, operation, shape_only
from tinyqwen.blocks.attention import attention
from tinyqwen.blocks.attention_parts import attention_part, merged
from tinyqwen.blocks.rope import rope_tables


def ways(position_T, chunk):
    """Where queries stand towards their own chunk, the one before, and all earlier ones; keys stand as in the first.

    As many as some token has use for: one for a text within a chunk, two within two, then three.

    >>> from tinyqwen.config import DualChunk
    >>> ways(np.array([7, 13, 20]), DualChunk(chunk_size=12, local_size=4))
    [array([7, 5, 4]), array([12, 12, 12]), array([12, 12, 12])]
    """
    L, far = chunk.chunk_len, chunk.chunk_size
    inside_T = position_T % L
    intra_T, succ_T, inter_T = inside_T, np.minimum(inside_T + L, far), np.full_like(inside_T, min(2 * L - 1, far))
    return [intra_T, succ_T, inter_T][: 1 + int(position_T.max()) // L]


def stretches(first, stop, chunk):
    """The keys [start, stop) that queries first .. stop - 1, all of one chunk, meet in each way.

    >>> from tinyqwen.config import DualChunk
    >>> stretches(20, 22, DualChunk(chunk_size=12, local_size=4))
    [(16, 22), (8, 16), (0, 8)]
    """
    begin = first // chunk.chunk_len * chunk.chunk_len
    intra, succ, inter = (begin, stop), (begin - chunk.chunk_len, begin), (0, begin - chunk.chunk_len)
    return [intra, succ, inter][: 1 + begin // chunk.chunk_len]


def cut(first, stop, chunk):
    """Places first .. stop - 1, cut where a chunk ends.

    >>> from tinyqwen.config import DualChunk
    >>> list(cut(5, 17, DualChunk(chunk_size=12, local_size=4)))
    [(5, 8), (8, 16), (16, 17)]
    """
    while first < stop:
        end = min(stop, (first // chunk.chunk_len + 1) * chunk.chunk_len)
        yield first, end
        first = end


@operation
def dual_chunk_tables(backend, position_T, length_T, *, head_dim, theta, chunk):
    """Pairs (cos_TKh, sin_TKh), one for each of `ways`; keys are turned by the first.

    position_T   each token's place in its own sequence
    length_T     how long its text is, what is still to be read included
    """
    tables = [rope_tables(backend, way_T, head_dim=head_dim, theta=theta) for way_T in ways(position_T, chunk)]
    trained = chunk.original_max_position_embeddings
    if trained and length_T.max() > trained:
        tables = [sharpen(backend, *table, length_T, trained=trained) for table in tables]
    return tables


@operation
def sharpen(backend, cos_TKh, sin_TKh, length_T, *, trained):
    """Tables that make vectors longer by max(1, 0.1 ln(n / trained) + 1), for a token whose text has n tokens.

    >>> from backends import get
    >>> cos_TKh, sin_TKh = np.ones((3, 1), np.float32), np.zeros((3, 1), np.float32)
    >>> sharpen(get("numpy"), cos_TKh, sin_TKh, np.array([1, 32768, 131072]), trained=32768)[0].ravel()
    array([1.       , 1.       , 1.1386294], dtype=float32)
    """
    xp, dtype = backend.xp, backend.dtype
    growth_T1 = xp.asarray(length_T).astype(dtype)[:, None] / dtype.type(trained)
    factor_T1 = xp.maximum(1, dtype.type(0.1) * xp.log(growth_T1) + 1)
    return factor_T1 * cos_TKh, factor_T1 * sin_TKh


@sharpen.cost
def _(cos_TKh, sin_TKh, length_T, *, trained):
    out = shape_only(cos_TKh.shape, cos_TKh.dtype), shape_only(sin_TKh.shape, sin_TKh.dtype)
    read, written = nbytes(cos_TKh, sin_TKh, length_T), nbytes(out)
    return Cost(out, flops=4 * len(length_T) + 2 * cos_TKh.size, read=read, written=written)


@operation
def dual_chunk_attention(backend, queries, keys, values, *, spans, chunk):
    """Attend within each sequence, to near and far chunks: out_THK.

    queries                 q_THK of all sequences, end to end, turned in each of `ways`
    keys, values, spans     as of `attention`
    chunk                   `tinyqwen.config.DualChunk`
    """
    out_THK = backend.xp.empty_like(queries[0])
    for span, k_GSK, v_GSK in zip(spans, keys, values, strict=True):
        total = k_GSK.shape[1]
        before = total - span.stop  # a query in row t has place before + t in its sequence
        for first, stop in cut(before + span.start, total, chunk):
            rows = slice(first - before, stop - before)
            parts = [
                attention_part(backend, q_THK[rows], k_GSK[:, start:end], v_GSK[:, start:end], past=first - start)
                for q_THK, (start, end) in zip(queries, stretches(first, stop, chunk))
            ]
            out_THK[rows] = merged(backend, parts)
    return out_THK


@dual_chunk_attention.cost
def _(queries, keys, values, *, spans, chunk):
    cost = attention.cost_of(queries[0], keys, values, spans=spans)  # the same pairs, each in one of the ways
    return cost._replace(read=cost.read + nbytes(queries[1:]))
