"""RMSNorm: bring every token's vector to one loudness.

    y = x / sqrt(mean(x^2) + eps) * weight

LayerNorm would also subtract the mean and add a bias; RMSNorm leaves both out and loses nothing measurable.
Qwen2 normalises before attention and before the feed-forward part (pre-norm), and once more before the head.
eps is 1e-6, except in the 72B base model (and the 14B, 32B, 72B base models of 2.5): 1e-5.

Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4; transformers, Qwen2RMSNorm.
"""

from backends.interface import Cost, nbytes, operation, shape_only


@operation
def rms_norm(backend, x_TD, weight_D, *, eps):
    """Scale each token's vector to root mean square 1, then by a learned weight per channel.

    >>> import numpy as np; from backends import get
    >>> rms_norm(get("numpy"), np.float32([[3, 4], [-30, -40]]), np.float32([1, 10]), eps=0.0).round(4)
    array([[  0.8485,  11.3137],
           [ -0.8485, -11.3137]], dtype=float32)
    """
    xp = backend.xp
    mean_square_T1 = xp.mean(x_TD * x_TD, axis=-1, keepdims=True)
    return x_TD / xp.sqrt(mean_square_T1 + eps) * weight_D


@rms_norm.cost
def _(x_TD, weight_D, *, eps):
    T, D = x_TD.shape
    flops = 4 * T * D + 2 * T  # square, sum, divide, weight; the mean and the root once a token
    return Cost(shape_only((T, D), x_TD.dtype), flops, read=nbytes(x_TD, weight_D), written=x_TD.nbytes)


@rms_norm.gradient
def _(backend, d_out_TD, x_TD, weight_D, *, eps):
    """With u = x r, r = 1 / sqrt(mean(x^2) + eps) and du = dout weight:  dx = r (du - u mean(du u)).

    The mean takes out what would only make x longer, as y does not depend on that.
    """
    xp = backend.xp
    r_T1 = 1 / xp.sqrt(xp.mean(x_TD * x_TD, axis=-1, keepdims=True) + eps)
    unit_TD = x_TD * r_T1
    d_unit_TD = d_out_TD * weight_D
    d_x_TD = r_T1 * (d_unit_TD - unit_TD * xp.mean(d_unit_TD * unit_TD, axis=-1, keepdims=True))
    return d_x_TD, (d_out_TD * unit_TD).sum(axis=0)
