"""One layer: attention moves information between tokens, the feed-forward part works on each token alone.

    x = x + attention( norm(x) )
    x = x + feed_forward( norm(x) )

The residual stream x passes every layer unhindered; each part reads a normalised copy and adds what it found.
Qwen2 is pre-norm: the norm stands before each part, never on the stream itself.

Source: transformers, Qwen2DecoderLayer and Qwen2MoeDecoderLayer.
"""

from backends.interface import Chain, operation
from tinyqwen.blocks.linear import add
from tinyqwen.blocks.moe import sparse_moe
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.self_attention import self_attention
from tinyqwen.blocks.swiglu import feed_forward


@operation
def decoder_layer(backend, x_TD, weights, tables, *, config, step, layer):
    """The residual stream after one more layer. tables: how positions turn queries and keys, see `self_attention`."""
    eps = config.rms_norm_eps

    h_TD = rms_norm(backend, x_TD, weights.input_layernorm.weight, eps=eps)
    h_TD = self_attention(backend, h_TD, weights.self_attn, tables, config=config, step=step, layer=layer)
    x_TD = add(backend, x_TD, h_TD)

    h_TD = rms_norm(backend, x_TD, weights.post_attention_layernorm.weight, eps=eps)
    if config.is_sparse(layer):
        h_TD = sparse_moe(backend, h_TD, weights.mlp, config=config)
    else:
        h_TD = feed_forward(backend, h_TD, weights.mlp)
    return add(backend, x_TD, h_TD)


@Chain
def decoder_layers(backend, x_TD, layers, tables, *, config, step):
    """The residual stream after all layers, one after the other."""
    for layer in range(config.num_hidden_layers):
        x_TD = decoder_layer(backend, x_TD, layers[layer], tables, config=config, step=step, layer=layer)
    return x_TD
