"""What config.json may say: a rule for every key, the keys without effect, and rules between keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields

from backends.quantised import GROUP
from tinyqwen.config import FULL, SLIDING, Config, Quantization
from tinyqwen.json_rules import Rule, boolean, either, every, list_of, null_or, object_of, only, real, text, whole

QUANTIZATIONS = (Quantization("int8"), Quantization("int4"), Quantization("int4", "int4"))

# ---- rules that whole objects need, beside those of their keys ----------------------------------------------------


def two_mscales(scaling):
    if (scaling.get("mscale") is None) != (scaling.get("mscale_all_dim") is None):
        return "it has one of mscale and mscale_all_dim, which have an effect only together"


def fast_above_slow(scaling):
    if (scaling.get("beta_fast") or 32) < (scaling.get("beta_slow") or 1):
        return "its beta_fast is less than its beta_slow"


def all_keys(chunk):
    sparse = sorted(key for key in chunk if key.startswith("sparse_")) if isinstance(chunk, dict) else []
    if sparse:
        return f"sparse attention is not supported: remove {', '.join(sparse)}, and all keys are attended to"


def local_in_chunk(chunk):
    if chunk["local_size"] >= chunk["chunk_size"]:
        return "its local_size must be smaller than chunk_size"


def quantised(value):
    if value not in map(written, QUANTIZATIONS):
        return 'must be null or what `tinyqwen convert` writes (quant_method "tinyqwen"): nothing else is supported'


def written(quantization: Quantization) -> dict:
    """How config.json says it. The numbers say how it lies in the files, so that a later layout cannot be mistaken."""
    return {"quant_method": "tinyqwen", "version": 1, "group_size": GROUP, **quantization._asdict()}


# ---- a rule for every key -----------------------------------------------------------------------------------------

LENGTH = whole(1, 2**24)  # tokens: positions must be exact in float32
TOKEN_ID = whole(0, 2**31)
YARN = {  # the fields of `RopeScaling`
    "factor": real(1.0, 1000.0),
    "original_max_position_embeddings": null_or(LENGTH),
    "attention_factor": null_or(real(1e-3, 1e3)),
    "beta_fast": null_or(real(1e-3, 1e6)),
    "beta_slow": null_or(real(1e-3, 1e6)),
    "mscale": null_or(real(1e-3, 1e3)),
    "mscale_all_dim": null_or(real(1e-3, 1e3)),
    "truncate": boolean,
}
CHUNK = {  # the fields of `DualChunk`
    "chunk_size": whole(2, 2**24),
    "local_size": LENGTH,
    "original_max_position_embeddings": whole(0, 2**24),
}
RULES: dict[str, Rule] = {
    "model_type": text,
    "hidden_size": whole(1, 2**17),
    "intermediate_size": whole(1, 2**20),
    "num_hidden_layers": whole(1, 1024),
    "num_attention_heads": whole(1, 2**12),
    "num_key_value_heads": null_or(whole(1, 2**12)),
    "head_dim": null_or(whole(2, 2**12)),
    "vocab_size": whole(1, 2**24),
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": real(1e-12, 1e-1),
    "rope_theta": real(1.0, 1e12),
    "rope_scaling": null_or(every(object_of(YARN, "factor"), two_mscales, fast_above_slow)),
    "tie_word_embeddings": boolean,
    "qkv_bias": boolean,
    "use_sliding_window": boolean,
    "sliding_window": null_or(whole(0, 2**24)),
    "max_window_layers": whole(0, 1024),
    "layer_types": null_or(list_of(text)),
    "dual_chunk_attention_config": null_or(
        every(all_keys, object_of(CHUNK, "chunk_size", "local_size"), local_in_chunk)
    ),
    "num_experts": whole(0, 2**12),
    "num_experts_per_tok": whole(0, 2**12),
    "moe_intermediate_size": whole(0, 2**20),
    "shared_expert_intermediate_size": whole(0, 2**20),
    "norm_topk_prob": boolean,
    "decoder_sparse_step": whole(1, 1024),
    "mlp_only_layers": null_or(list_of(whole(0, 1023))),
    "eos_token_id": null_or(either(TOKEN_ID, list_of(TOKEN_ID))),
    "torch_dtype": null_or(text),
    "quantization_config": null_or(quantised),
    "initializer_range": real(0.0, 10.0),
    "attention_dropout": real(0.0, 1.0),
    "router_aux_loss_coef": real(0.0, 1e6),
    "hidden_act": only("silu"),
    "use_mrope": only(False),
    "is_encoder_decoder": only(False),
    "add_cross_attention": only(False),
    "pruned_heads": only(None, {}),
}
REQUIRED = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size",
)  # fmt: skip
MOE_REQUIRED = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
MOE_ONLY = (
    *MOE_REQUIRED, "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef", "qkv_bias",
)  # fmt: skip

# What transformers takes where a key is missing.
DEFAULTS = {each.name: each.default for each in fields(Config) if each.default is not MISSING}
DEFAULTS |= {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

NO_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation
    auto_map bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id dtype
    finetuning_task id2label keys_to_ignore_at_inference label2id name_or_path output_attentions
    output_hidden_states output_router_logits pad_token_id pooler_hidden_size prefix problem_type pretraining_tp
    return_dict return_dict_in_generate sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torchscript transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
    is_decoder bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p typical_p
    """.split()
)

YARN_OR_CHUNKS = (
    "rope_scaling and dual_chunk_attention_config would both stretch the context: chunks need distances that look as "
    "they did in training, and YaRN changes that; leave one out (for YaRN's temperature with chunks, set "
    "original_max_position_embeddings in dual_chunk_attention_config to the trained context)"
)


# ---- the checks ---------------------------------------------------------------------------------------------------


def complaints(raw: dict, ignore: tuple[str, ...] = ()) -> list[str]:
    """All that is wrong with these keys: with single ones, or else with what they say together."""
    return list(of_keys(raw, ignore)) or [
        complaint
        for check in (between_sizes, between_ways_to_look_far, between_experts)
        for complaint in check({**DEFAULTS, **raw})
    ]


def of_keys(raw: dict, ignore: tuple[str, ...]) -> Iterator[str]:
    required = REQUIRED + (MOE_REQUIRED if raw["model_type"] == "qwen2_moe" else ())
    yield from (f"{key} is missing" for key in required if key not in raw)
    for key, value in raw.items():
        if key in RULES:
            complaint = RULES[key](value)
        elif key in NO_EFFECT or key in ignore:
            complaint = None
        else:
            complaint = f"is a key whose effect tinyqwen does not know; if it has none, pass --ignore-config {key}"
        if complaint:
            shown = json.dumps(value)
            yield f"{key} is {shown if len(shown) < 60 else shown[:57] + '...'} but {complaint}"


def between_sizes(raw: dict) -> Iterator[str]:
    width, heads = raw["hidden_size"], raw["num_attention_heads"]
    groups = raw["num_key_value_heads"] or heads
    if heads % groups:
        yield f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
    if not raw["head_dim"] and width % heads:
        yield f"hidden_size {width} is not a multiple of num_attention_heads {heads}"
    elif (raw["head_dim"] or width // heads) % 2:
        yield "head_dim is odd, but RoPE rotates pairs"


def between_ways_to_look_far(raw: dict) -> Iterator[str]:
    slides, layers = raw["use_sliding_window"], raw["num_hidden_layers"]
    scaling, chunk = raw["rope_scaling"], raw["dual_chunk_attention_config"]
    if slides and not raw["sliding_window"]:
        yield "use_sliding_window is true but sliding_window gives no width"
    if scaling:
        trained = scaling.get("original_max_position_embeddings") or raw["max_position_embeddings"]
        if scaling["factor"] * trained > 2**24:
            yield f"rope_scaling stretches {trained} tokens {scaling['factor']:g} times, beyond {2**24}"
        if raw["rope_theta"] <= 1:
            yield "rope_scaling needs a rope_theta above 1: with 1, all pairs turn alike"
    if chunk and chunk["chunk_size"] > raw["max_position_embeddings"]:
        yield (
            f"chunk_size of dual_chunk_attention_config is {chunk['chunk_size']}, but the model knows distances up to "
            f"{raw['max_position_embeddings']} only (max_position_embeddings)"
        )
    if chunk and scaling:
        yield YARN_OR_CHUNKS
    if chunk and slides:
        yield "dual_chunk_attention_config reaches over all of a text, use_sliding_window cuts it off; which?"
    if types := raw["layer_types"]:
        if len(types) != layers:
            yield f"layer_types names {len(types)} layers, but num_hidden_layers is {layers}"
        if strange := sorted(set(types) - {FULL, SLIDING}):
            yield f"layer_types may only say {FULL} or {SLIDING}, found {strange}"
        if SLIDING in types and not slides:
            yield f"layer_types says {SLIDING} but use_sliding_window is false"
    elif slides and raw["model_type"] == "qwen2_moe":
        yield (
            "use_sliding_window in a qwen2_moe config means different layers in different releases of transformers; "
            "say which in layer_types"
        )


def between_experts(raw: dict) -> Iterator[str]:
    layers, experts, chosen = raw["num_hidden_layers"], raw["num_experts"], raw["num_experts_per_tok"]
    if raw["model_type"] == "qwen2":
        if experts:
            yield "num_experts is set, but model_type is qwen2, which has none"
        if not raw["qkv_bias"]:
            yield "qkv_bias is false, but only qwen2_moe models may leave the biases out"
        return
    if layers * experts > 2**17:
        yield f"num_hidden_layers {layers} x num_experts {experts} is more than any model has"
    if experts < 1:
        yield "num_experts is 0, but model_type is qwen2_moe"
    if not 1 <= chosen <= experts:
        yield f"num_experts_per_tok must be from 1 to num_experts, is {chosen}"
    if raw["moe_intermediate_size"] < 1 or raw["shared_expert_intermediate_size"] < 1:
        yield "moe_intermediate_size and shared_expert_intermediate_size must be at least 1"
    if (last := max(raw["mlp_only_layers"] or [0])) >= layers:
        yield f"mlp_only_layers names layer {last}, but there are {layers}"
