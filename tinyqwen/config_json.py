"""Reading config.json: every key is used, known to be harmless, or refused by name.

An ignored key is a model that runs and is subtly wrong: libraries that drop what they do not know have run Qwen2
without its sliding windows, and scaled models without their scaling. All that is wrong is said at once.

The spellings of transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`) mean the same.

Source: transformers, models/qwen2/configuration_qwen2.py and models/qwen2_moe/configuration_qwen2_moe.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from backends.quantised import GROUP
from tinyqwen.config import FULL, SLIDING, Config, DualChunk, Quantization, RopeScaling
from tinyqwen.errors import ModelFilesError

# ---- rules for one value: each returns a complaint, or None ----


def whole(low: int, high: int):
    """A rule: an integer of that range (and not true or false, which Python would take for 1 and 0)."""

    def complaint(value):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return f"must be a whole number from {low} to {high}"

    return complaint


def real(low: float, high: float):
    """A rule: a finite number of that range."""

    def complaint(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return f"must be a number from {low:g} to {high:g}"

    return complaint


def boolean(value):
    if not isinstance(value, bool):
        return "must be true or false"


def text(value):
    if not isinstance(value, str):
        return "must be a text"


def list_of(rule):
    def complaint(value):
        if not isinstance(value, list) or any(rule(item) for item in value):
            return f"must be a list whose items {rule(None).replace('must be', 'are')}"

    return complaint


def either(first, second):
    return lambda value: first(value) and second(value) and f"{first(value)}, or {second(value)}"


def null_or(rule):
    return lambda value: None if value is None else rule(value)


def dual_chunk(value):
    if value is None:
        return None
    if not isinstance(value, dict):
        return "must be null or an object with chunk_size and local_size"
    sparse = sorted(key for key in value if key.startswith("sparse_"))
    if sparse:
        return f"sparse attention is not supported: remove {', '.join(sparse)}, and all keys are attended to"
    for key, rule in CHUNK.items():
        if key not in value and key not in DualChunk._field_defaults:
            return f"must have {key}"
        if key in value and rule(value[key]):
            return f"{key} {rule(value[key])}"
    if unknown := sorted(set(value) - set(CHUNK)):
        return f"the effect of {', '.join(unknown)} is not known"
    if value["local_size"] >= value["chunk_size"]:
        return "local_size must be smaller than chunk_size"


def quantised(value):
    if value is not None and value not in map(written, QUANTIZATIONS):
        return 'must be null or what `tinyqwen convert` writes (quant_method "tinyqwen"): nothing else is supported'


def written(quantization: Quantization) -> dict:
    """How config.json says it. The numbers say how it lies in the files, so that a later layout cannot be mistaken."""
    return {"quant_method": "tinyqwen", "version": 1, "group_size": GROUP, **quantization._asdict()}


def yarn(value):
    """A rule: the numbers of `RopeScaling`, under its names."""
    if value is None:
        return None
    if unknown := sorted(set(value) - set(YARN)):
        return f"has {', '.join(unknown)}, whose effect tinyqwen does not know"
    given = {"factor": None, **value}
    found = [f"its {key} {complaint}" for key in given if (complaint := YARN[key](given[key]))]
    if (value.get("mscale") is None) != (value.get("mscale_all_dim") is None):
        found.append("it has one of mscale and mscale_all_dim, which have an effect only together")
    if not found and (value.get("beta_fast") or 32) < (value.get("beta_slow") or 1):
        found.append("its beta_fast is less than its beta_slow")
    return " and ".join(found) or None


YARN = {
    "factor": real(1.0, 1000.0),
    "original_max_position_embeddings": null_or(whole(1, 2**24)),
    "attention_factor": null_or(real(1e-3, 1e3)),
    "beta_fast": null_or(real(1e-3, 1e6)),
    "beta_slow": null_or(real(1e-3, 1e6)),
    "mscale": null_or(real(1e-3, 1e3)),
    "mscale_all_dim": null_or(real(1e-3, 1e3)),
    "truncate": boolean,
}


def written_scaling(scaling: RopeScaling) -> dict:
    """How config.json says it, in the words of the published model cards.

    >>> written_scaling(RopeScaling(4.0, 32768))
    {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32768}
    """
    usual = RopeScaling._field_defaults
    numbers = {key: value for key, value in scaling._asdict().items() if key not in usual or value != usual[key]}
    return {"type": "yarn", **numbers}


# Qwen2's "YaRN and DCA" is Dual Chunk Attention with YaRN's temperature; vLLM refuses the two together, too.
YARN_OR_CHUNKS = (
    "rope_scaling and dual_chunk_attention_config would both stretch the context: chunks need distances that look as "
    "they did in training, and YaRN changes that; leave one out (for YaRN's temperature with chunks, set "
    "original_max_position_embeddings in dual_chunk_attention_config to the trained context)"
)
TOKEN_ID = whole(0, 2**31)
CHUNK = {
    "chunk_size": whole(2, 2**24),
    "local_size": whole(1, 2**24),
    "original_max_position_embeddings": whole(0, 2**24),
}
QUANTIZATIONS = (Quantization("int8"), Quantization("int4"), Quantization("int4", "int4"))

USED = {
    "model_type": text,
    "hidden_size": whole(1, 2**17),
    "intermediate_size": whole(1, 2**20),
    "num_hidden_layers": whole(1, 1024),
    "num_attention_heads": whole(1, 2**12),
    "num_key_value_heads": null_or(whole(1, 2**12)),
    "head_dim": null_or(whole(2, 2**12)),
    "vocab_size": whole(1, 2**24),
    "max_position_embeddings": whole(1, 2**24),  # positions must be exact in float32
    "rms_norm_eps": real(1e-12, 1e-1),
    "rope_theta": real(1.0, 1e12),
    "rope_scaling": yarn,
    "tie_word_embeddings": boolean,
    "qkv_bias": boolean,
    "use_sliding_window": boolean,
    "sliding_window": null_or(whole(0, 2**24)),
    "max_window_layers": whole(0, 1024),
    "layer_types": null_or(list_of(text)),
    "dual_chunk_attention_config": dual_chunk,
    "num_experts": whole(0, 2**12),
    "num_experts_per_tok": whole(0, 2**12),
    "moe_intermediate_size": whole(0, 2**20),
    "shared_expert_intermediate_size": whole(0, 2**20),
    "norm_topk_prob": boolean,
    "decoder_sparse_step": whole(1, 1024),
    "mlp_only_layers": null_or(list_of(whole(0, 1023))),
    "eos_token_id": null_or(either(TOKEN_ID, list_of(TOKEN_ID))),
    "torch_dtype": null_or(text),
    "quantization_config": quantised,
    "initializer_range": real(0.0, 10.0),
    "attention_dropout": real(0.0, 1.0),
    "router_aux_loss_coef": real(0.0, 1e6),
}
REQUIRED = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size",
)  # fmt: skip
MOE_REQUIRED = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
MOE_ONLY = (
    *MOE_REQUIRED, "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef", "qkv_bias",
)  # fmt: skip

# Keys with one supported value: anything else changes the mathematics.
FIXED = {
    "hidden_act": ("silu",),
    "use_mrope": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
}

# Keys that cannot change what the model computes from given weights and tokens.
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


def read_config(path: Path | str, ignore: tuple[str, ...] = ()) -> Config:
    """The config in that config.json. `ignore` names keys to accept although their effect is unknown.

    Errors: ModelFilesError names the file and lists every bad field at once.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFilesError(f"{path}: no config.json there; is this a Hugging Face model folder?") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelFilesError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    try:
        return parse_config(raw, ignore)
    except ModelFilesError as error:
        raise ModelFilesError(f"{path}: {error}") from None


def parse_config(raw: dict, ignore: tuple[str, ...] = ()) -> Config:
    """The config that these keys and values say, in the spelling of transformers 4 or 5.

    >>> raw = dict(model_type="qwen2", hidden_size=64, intermediate_size=172, num_hidden_layers=5,
    ...            num_attention_heads=8, num_key_value_heads=4, vocab_size=512, rope_theta=1e6)
    >>> parse_config(raw).head_dim
    8
    >>> parse_config({**raw, "num_key_value_heads": 3, "rms_norm_eps": 0})
    Traceback (most recent call last):
    tinyqwen.errors.ModelFilesError: rms_norm_eps is 0 but must be a number from 1e-12 to 0.1
    """
    if not isinstance(raw, dict):
        raise ModelFilesError(f"must hold a JSON object, found {type(raw).__name__}")
    if raw.get("model_type") not in ("qwen2", "qwen2_moe"):
        raise ModelFilesError(
            f"model_type is {raw.get('model_type')!r}; tinyqwen runs 'qwen2' (Qwen2, Qwen2.5) and 'qwen2_moe'"
        )
    raw = modern_spelling(raw)
    complaints = complaints_by_field(raw, ignore) or complaints_across_fields(raw)
    if complaints:
        raise ModelFilesError("; ".join(complaints))
    if raw["model_type"] == "qwen2":  # keys of a sparse model say nothing about a dense one
        raw = {key: value for key, value in raw.items() if key not in MOE_ONLY}

    sliding = raw.get("use_sliding_window", False)
    eos = raw.get("eos_token_id")
    values = {key: raw[key] for key in raw if key in Config.__dataclass_fields__ and raw[key] is not None}
    values["eos_token_id"] = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    values["mlp_only_layers"] = tuple(raw.get("mlp_only_layers") or ())
    if raw.get("quantization_config"):
        values["quantization_config"] = next(q for q in QUANTIZATIONS if written(q) == raw["quantization_config"])
    if raw.get("dual_chunk_attention_config"):
        values["dual_chunk_attention_config"] = DualChunk(**raw["dual_chunk_attention_config"])
    values["torch_dtype"] = raw.get("torch_dtype") or "float32"
    if raw.get("rope_scaling"):
        trained = raw.get("max_position_embeddings", 32768)
        said = {key: value for key, value in raw["rope_scaling"].items() if value is not None}
        values["rope_scaling"] = RopeScaling(**{"original_max_position_embeddings": trained, **said})
    values["layer_types"] = layer_types(raw)
    values["sliding_window"] = raw.get("sliding_window", 4096) if sliding else None
    return Config(**values)


def modern_spelling(raw: dict) -> dict:
    """Fold the ways of saying one thing into one: `dtype`, and the rope keys of transformers 4 and 5.

    >>> modern_spelling({"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    {'torch_dtype': 'bfloat16', 'rope_theta': 1000000.0}
    >>> modern_spelling({"rope_scaling": {"type": "yarn", "factor": 4.0}})
    {'rope_scaling': {'factor': 4.0}}
    """
    raw, scaling = dict(raw), None
    if "dtype" in raw:
        raw.setdefault("torch_dtype", raw.pop("dtype"))
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.pop(key, None)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ModelFilesError(f"{key} is {rope!r} but must be an object")
        kinds = {rope[name] for name in ("type", "rope_type") if isinstance(rope.get(name), str)}
        numbers = {name: value for name, value in rope.items() if name not in ("type", "rope_type", "rope_theta")}
        if kinds == {"yarn"}:
            if scaling not in (None, numbers):
                raise ModelFilesError("rope_scaling and rope_parameters say different things; which is right?")
            scaling = numbers
        elif kinds != {"default"} or numbers:
            kind = ", ".join(sorted(kinds)) or "not named"
            extra = f" with {', '.join(sorted(numbers))}" if numbers else ""
            raise ModelFilesError(
                f"{key}: rope type {kind}{extra} is not supported, only yarn is, and ignoring it would change the "
                "result; without the key the model runs at its trained length"
            )
        theta = rope.get("rope_theta", raw.get("rope_theta"))
        if theta is not None and raw.setdefault("rope_theta", theta) != theta:
            raise ModelFilesError(f"rope_theta is {raw['rope_theta']} but {key} says {theta}; which is right?")
    return raw if scaling is None else {**raw, "rope_scaling": scaling}


def complaints_by_field(raw: dict, ignore: tuple[str, ...]) -> list[str]:
    required = REQUIRED + (MOE_REQUIRED if raw["model_type"] == "qwen2_moe" else ())
    found = [f"{key} is missing" for key in required if key not in raw]
    for key, value in raw.items():
        if key in USED:
            complaint = USED[key](value)
        elif key in FIXED:
            allowed = " or ".join(json.dumps(choice) for choice in FIXED[key])
            complaint = None if value in FIXED[key] else f"must be {allowed}: nothing else is supported"
        elif key in NO_EFFECT or key in ignore:
            complaint = None
        else:
            complaint = f"is a key whose effect tinyqwen does not know; if it has none, pass --ignore-config {key}"
        if complaint:
            shown = json.dumps(value)
            found.append(f"{key} is {shown if len(shown) < 60 else shown[:57] + '...'} but {complaint}")
    return found


def complaints_across_fields(raw: dict) -> list[str]:
    layers, heads = raw["num_hidden_layers"], raw["num_attention_heads"]
    groups = raw.get("num_key_value_heads") or heads
    found = []
    if heads % groups:
        found.append(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    if not raw.get("head_dim") and raw["hidden_size"] % heads:
        found.append(f"hidden_size {raw['hidden_size']} is not a multiple of num_attention_heads {heads}")
    elif (raw.get("head_dim") or raw["hidden_size"] // heads) % 2:
        found.append("head_dim is odd, but RoPE rotates pairs")
    if raw.get("use_sliding_window") and raw.get("sliding_window", 4096) in (None, 0):
        found.append("use_sliding_window is true but sliding_window gives no width")
    if scaling := raw.get("rope_scaling"):
        trained = scaling.get("original_max_position_embeddings") or raw.get("max_position_embeddings", 32768)
        if scaling["factor"] * trained > 2**24:
            found.append(f"rope_scaling stretches {trained} tokens {scaling['factor']:g} times, beyond {2**24}")
        if raw.get("rope_theta", 10000.0) <= 1:
            found.append("rope_scaling needs a rope_theta above 1: with 1, all pairs turn alike")
    chunk = raw.get("dual_chunk_attention_config")
    trained = raw.get("max_position_embeddings", 32768)
    if chunk and chunk["chunk_size"] > trained:
        found.append(
            f"chunk_size of dual_chunk_attention_config is {chunk['chunk_size']}, but the model knows distances up to "
            f"{trained} only (max_position_embeddings)"
        )
    if chunk and raw.get("rope_scaling"):
        found.append(YARN_OR_CHUNKS)
    if chunk and raw.get("use_sliding_window"):
        found.append("dual_chunk_attention_config reaches over all of a text, use_sliding_window cuts it off; which?")
    types = raw.get("layer_types")
    if types:
        if len(types) != layers:
            found.append(f"layer_types names {len(types)} layers, but num_hidden_layers is {layers}")
        if set(types) - {FULL, SLIDING}:
            found.append(f"layer_types may only say {FULL} or {SLIDING}, found {sorted(set(types) - {FULL, SLIDING})}")
        if SLIDING in types and not raw.get("use_sliding_window"):
            found.append(f"layer_types says {SLIDING} but use_sliding_window is false")
    if raw["model_type"] == "qwen2_moe":
        if layers * raw["num_experts"] > 2**17:
            found.append(f"num_hidden_layers {layers} x num_experts {raw['num_experts']} is more than any model has")
        if raw["num_experts"] < 1:
            found.append("num_experts is 0, but model_type is qwen2_moe")
        if not 1 <= raw["num_experts_per_tok"] <= raw["num_experts"]:
            found.append(f"num_experts_per_tok must be from 1 to num_experts, is {raw['num_experts_per_tok']}")
        if raw["moe_intermediate_size"] < 1 or raw["shared_expert_intermediate_size"] < 1:
            found.append("moe_intermediate_size and shared_expert_intermediate_size must be at least 1")
        if max(raw.get("mlp_only_layers") or [0]) >= layers:
            found.append(f"mlp_only_layers names layer {max(raw['mlp_only_layers'])}, but there are {layers}")
        if raw.get("use_sliding_window") and not types:
            found.append(
                "use_sliding_window in a qwen2_moe config means different layers in different releases of "
                "transformers; say which in layer_types"
            )
    else:
        if raw.get("num_experts"):
            found.append("num_experts is set, but model_type is qwen2, which has none")
        if not raw.get("qkv_bias", True):
            found.append("qkv_bias is false, but only qwen2_moe models may leave the biases out")
    return found


def layer_types(raw: dict) -> tuple[str, ...]:
    """Full or sliding attention, layer by layer: the FIRST max_window_layers layers are full, the rest slide."""
    if raw.get("layer_types"):
        return tuple(raw["layer_types"])
    layers = raw["num_hidden_layers"]
    full = raw.get("max_window_layers", 28) if raw.get("use_sliding_window") else layers
    return tuple(FULL if layer < full else SLIDING for layer in range(layers))


def to_json(config: Config) -> str:
    """config.json of that config, which this module and transformers both read.

    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> parse_config(json.loads(to_json(config))) == config
    True
    """
    raw = dataclasses.asdict(config)
    sparse = config.num_experts > 0
    if not sparse:
        for key in MOE_ONLY:
            raw.pop(key)
    if config.quantization_config:
        raw["quantization_config"] = written(config.quantization_config)
    else:
        raw.pop("quantization_config")  # the published files leave it out, too
    chunk = raw.pop("dual_chunk_attention_config")
    if chunk:
        raw["dual_chunk_attention_config"] = dict(chunk._asdict())
    if config.rope_scaling:
        raw["rope_scaling"] = written_scaling(config.rope_scaling)
    else:
        raw.pop("rope_scaling")
    raw["architectures"] = ["Qwen2MoeForCausalLM" if sparse else "Qwen2ForCausalLM"]
    raw["hidden_act"] = "silu"
    raw["use_sliding_window"] = config.sliding_window is not None
    if len(config.eos_token_id) < 2:
        raw["eos_token_id"] = config.eos_token_id[0] if config.eos_token_id else None
    if math.prod((config.num_attention_heads, config.head_dim)) == config.hidden_size:
        raw.pop("head_dim")  # the published files leave it out, too
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"
