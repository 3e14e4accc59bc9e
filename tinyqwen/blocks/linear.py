"""Linear layer and residual add: where nearly all FLOPs, bytes and parameters are.

    out[t, o] = sum over i of x[t, i] * weight[o, i]  (+ bias[o])

Decoding one token reads every weight once and multiplies it once: the memory sets the speed. A prompt of T tokens uses
each weight T times for the same bytes: there the arithmetic sets the speed.

Qwen2 has biases on q, k and v only; Llama has none at all. Weights are stored [outputs, inputs], as Hugging Face does.

Source: transformers, models/qwen2/modeling_qwen2.py, Qwen2Attention and Qwen2MLP.
"""

from backends.interface import Cost, nbytes, operation, shape_only


@operation
def linear(backend, x_TI, weight_OI, bias_O=None):
    """Each token's vector times a matrix, plus a bias if the layer has one.

    weight_OI   an array, or a matrix in fewer bits (`backends.quantised`); widened here to the backend's type, as a
                whole and every time, which float32 weights need not: faster backends multiply the bits as they lie

    >>> import numpy as np; from backends import get
    >>> linear(get("numpy"), np.float32([[1, 2]]), np.float32([[1, 0], [0, 1], [1, 1]]), np.float32([0, 0, 10]))
    array([[ 1.,  2., 13.]], dtype=float32)
    """
    out_TO = x_TI @ weight_OI.astype(backend.dtype, copy=False).T
    if bias_O is not None:
        out_TO += bias_O
    return out_TO


@linear.cost
def _(x_TI, weight_OI, bias_O=None):
    (T, I), O = x_TI.shape, weight_OI.shape[0]  # noqa: E741
    out_TO = shape_only((T, O), x_TI.dtype)
    flops = 2 * T * I * O + (T * O if bias_O is not None else 0)
    return Cost(out_TO, flops, read=nbytes(x_TI, weight_OI, bias_O), written=out_TO.nbytes)


@linear.gradient
def _(backend, d_out_TO, x_TI, weight_OI, bias_O=None):
    """dx = dout W, dW = dout^T x, dbias = sum over the tokens of dout: two products as large as the first."""
    d_bias_O = None if bias_O is None else d_out_TO.sum(axis=0)
    return d_out_TO @ weight_OI.astype(backend.dtype, copy=False), d_out_TO.T @ x_TI, d_bias_O


@operation
def add(backend, x_TD, y_TD):
    """The residual add. It is an operation, too, so that whoever watches the door sees all arithmetic."""
    return x_TD + y_TD


@add.cost
def _(x_TD, y_TD):
    return Cost(shape_only(x_TD.shape, x_TD.dtype), x_TD.size, read=nbytes(x_TD, y_TD), written=x_TD.nbytes)


@add.gradient
def _(backend, d_out_TD, x_TD, y_TD):
    """Both get all of it: this is why the residual stream carries gradients through any depth."""
    return d_out_TD, d_out_TD.copy()
