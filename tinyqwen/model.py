"""The whole model: embed, layers, norm, logits.

    token ids --take_rows--> x --decoder_layers--> x --rms_norm--> x --linear--> logits

Everything a Qwen2 model does between token ids and logits passes through here, on every backend, for prefill, decode,
batches and training alike.

Source: transformers, Qwen2Model (here `last_hidden_state`) and Qwen2ForCausalLM (`forward`).
"""

from tinyqwen.blocks.decoder_layer import decoder_layers
from tinyqwen.blocks.dual_chunk import dual_chunk_tables
from tinyqwen.blocks.embedding import take_rows
from tinyqwen.blocks.linear import linear
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.rope import rope_tables


def forward(backend, config, weights, step):
    """The logits of the rows that the step asks for: how likely each token of the vocabulary is to come next.

    backend   where and how operations run, see `backends.interface`
    config    `tinyqwen.config.Config`
    weights   the tree of `tinyqwen.weights.tree`
    step      the tokens, see `tinyqwen.step`

    Returns logits_NV, in the backend's floating point type. The sequences' caches have grown by their tokens.

    >>> from backends import get; from tinyqwen.config import Config; from tinyqwen.step import make_step
    >>> from tinyqwen.weights import random_weights, tree
    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    >>> forward(get("numpy"), config, tree(random_weights(config)), make_step([([1, 2, 3], None)])).shape
    (1, 30)
    """
    x_ND = last_hidden_state(backend, config, weights, step)
    logits_NV = linear(backend, x_ND, weights.lm_head.weight)
    step.end()
    return logits_NV


def last_hidden_state(backend, config, weights, step):
    """What the head makes logits of: x_ND of the rows that the step asks for, behind the last norm.

    Whoever wants only the likeliest token need not read the whole head (`tinyqwen.shortlist`), and ends the step then.
    """
    x_TD = take_rows(backend, weights.embed_tokens.weight, step.token_T)
    angles = {"head_dim": config.head_dim, "theta": config.rope_theta}
    chunk = config.dual_chunk_attention_config
    if chunk is None:  # NOTE: YaRN is static. With rope_scaling in the config, short texts change, too
        tables = [rope_tables(backend, step.position_T, **angles, scaling=config.rope_scaling)]
    else:
        tables = dual_chunk_tables(backend, step.position_T, step.length_T, **angles, chunk=chunk)

    x_TD = decoder_layers(backend, x_TD, weights.layers, tables, config=config, step=step)

    x_ND = take_rows(backend, x_TD, step.row_N)  # a prompt of T tokens needs one row of logits, not T
    return rms_norm(backend, x_ND, weights.norm.weight, eps=config.rms_norm_eps)
