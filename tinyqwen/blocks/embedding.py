"""Embedding: a token is looked up, not computed.

    x[t] = table[id[t]]

Qwen2 does not scale the embedding. In the small models (0.5B, 1.5B, 2.5-3B) the same table is the output head.
The table has more rows than the tokenizer has tokens: the rest is padding for distributed training.

Source: transformers, models/qwen2/modeling_qwen2.py, Qwen2Model.embed_tokens.
"""

from backends.interface import Cost, operation, shape_only


@operation
def take_rows(backend, table_ND, row_T):
    """The rows of a table, in the backend's floating point type: embedding, and the rows whose logits are wanted.

    table_ND   N rows of D values, in any weight format; the embedding table has N = vocab_size
    row_T      which rows, whole numbers in [0, N)

    >>> import numpy as np; from backends import get
    >>> take_rows(get("numpy"), np.float32([[0, 1], [10, 11], [20, 21]]), np.array([2, 0]))
    array([[20., 21.],
           [ 0.,  1.]], dtype=float32)
    """
    return table_ND[backend.xp.asarray(row_T)].astype(backend.dtype, copy=False)


@take_rows.cost
def _(table_ND, row_T):
    (T,), D = row_T.shape, table_ND.shape[1]
    out_TD = shape_only((T, D))
    return Cost(out_TD, flops=0, read=row_T.nbytes + T * table_ND.nbytes // len(table_ND), written=out_TD.nbytes)


@take_rows.gradient
def _(backend, d_out_TD, table_ND, row_T):
    """A row gets the sum over all tokens that took it: dtable[n] = sum over t with row[t] = n of dout[t]."""
    d_table_ND = backend.xp.zeros(table_ND.shape, d_out_TD.dtype)
    backend.xp.add.at(d_table_ND, backend.xp.asarray(row_T), d_out_TD)
    return d_table_ND, None
