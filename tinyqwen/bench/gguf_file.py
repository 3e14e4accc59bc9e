"""Write a model folder as a GGUF file, llama.cpp's format, with the `gguf` package (`pip install 'tinyqwen[bench]'`).

    bf16   every matrix BF16
    int8   every matrix Q8_0: groups of 32 weights with a float16 scale, 8.5 bits a weight
    int4   every matrix Q4_0: groups of 32, 4.5 bits a weight; the embedding, which is the head too, stays Q8_0

Norms and biases are float32, as llama.cpp wants them. There is no tokenizer in the file: ids go in, logits come out.

Source: the GGUF specification, and llama.cpp's names for Qwen2 (`gguf.constants`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tinyqwen.bench.models import stored_tensors
from tinyqwen.config_json import read_config
from tinyqwen.errors import UsageError
from tinyqwen.weights import tensor_shapes

TYPES = {"bf16": ("BF16", "BF16"), "int8": ("Q8_0", "Q8_0"), "int4": ("Q4_0", "Q8_0")}  # of the body, of the tables
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """What GGUF calls a tensor of a Qwen2 checkpoint.

    >>> gguf_name("model.layers.3.self_attn.q_proj.bias"), gguf_name("model.embed_tokens.weight")
    ('blk.3.attn_q.bias', 'token_embd.weight')
    """
    owner, leaf = name.rsplit(".", 1)
    if owner.startswith("model.layers."):
        layer, _, owner = owner.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[owner]}.{leaf}"
    return f"{NAMES[owner]}.{leaf}"


def gguf_type(name: str, dimensions: int, dtype: str) -> str:
    """How a tensor is stored.

    >>> [gguf_type("token_embd.weight", 2, "int4"), gguf_type("blk.0.ffn_up.weight", 2, "int4")]
    ['Q8_0', 'Q4_0']
    """
    if dimensions < 2:
        return "F32"
    return TYPES[dtype][name.split(".")[0] in ("token_embd", "output")]


def write_gguf(folder: Path, path: Path, dtype: str, progress: Callable[[int, int], None] | None = None) -> None:
    """The model of that folder as one file, a tensor at a time; it gets its name when it is complete."""
    import gguf
    from gguf.quants import quantize

    config = read_config(folder / "config.json")
    if config.rope_scaling:
        raise UsageError("rope_scaling is not written into GGUF files; compare without it, its speed is the same")
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2", use_temp_file=True)
    writer.add_name("random")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    total = len(tensor_shapes(config))
    for done, (name, array) in enumerate(stored_tensors(folder)):
        name = gguf_name(name)
        kind = gguf.GGMLQuantizationType[gguf_type(name, array.ndim, dtype)]
        writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        if progress:
            progress(done + 1, total)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)
