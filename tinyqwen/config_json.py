"""Reading config.json: every key is used, known to be harmless, or refused by name.

An ignored key is a model that runs and is subtly wrong: libraries that drop what they do not know have run Qwen2
without its sliding windows, and scaled models without their scaling. All that is wrong is said at once;
`config_rules.py` holds the rules.

The spellings of transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`) mean the same.

Source: transformers, models/qwen2/configuration_qwen2.py and models/qwen2_moe/configuration_qwen2_moe.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tinyqwen.config import FULL, SLIDING, Config, DualChunk, RopeScaling
from tinyqwen.config_rules import DEFAULTS, MOE_ONLY, QUANTIZATIONS, complaints, written
from tinyqwen.errors import ModelFilesError


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
    if found := complaints(raw, ignore):
        raise ModelFilesError("; ".join(found))
    if raw["model_type"] == "qwen2":  # keys of a sparse model say nothing about a dense one
        raw = {key: value for key, value in raw.items() if key not in MOE_ONLY}
    return as_config({**DEFAULTS, **raw})


def as_config(raw: dict) -> Config:
    """The config of keys that are sound and all there."""
    values = {key: raw[key] for key in raw if key in Config.__dataclass_fields__ and raw[key] is not None}
    eos, chunk = raw["eos_token_id"], raw["dual_chunk_attention_config"]
    values |= {
        "eos_token_id": () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        "mlp_only_layers": tuple(raw["mlp_only_layers"] or ()),
        "layer_types": layer_types(raw),
        "sliding_window": raw["sliding_window"] if raw["use_sliding_window"] else None,
        "torch_dtype": raw["torch_dtype"] or "float32",
        "quantization_config": next((q for q in QUANTIZATIONS if written(q) == raw["quantization_config"]), None),
        "dual_chunk_attention_config": DualChunk(**chunk) if chunk else None,
    }
    if scaling := raw["rope_scaling"]:
        trained = {"original_max_position_embeddings": raw["max_position_embeddings"]}
        said = {key: value for key, value in scaling.items() if value is not None}
        values["rope_scaling"] = RopeScaling(**(trained | said))
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


def layer_types(raw: dict) -> tuple[str, ...]:
    """Full or sliding attention, layer by layer: the FIRST max_window_layers layers are full, the rest slide."""
    layers = raw["num_hidden_layers"]
    full = raw["max_window_layers"] if raw["use_sliding_window"] else layers
    return tuple(raw["layer_types"] or (FULL if layer < full else SLIDING for layer in range(layers)))


def to_json(config: Config) -> str:
    """config.json of that config, which this module and transformers both read.

    >>> config = Config(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> parse_config(json.loads(to_json(config))) == config
    True
    """
    raw = dataclasses.asdict(config)
    sparse, chunk, scaling = config.num_experts > 0, config.dual_chunk_attention_config, config.rope_scaling
    for key in ("quantization_config", "dual_chunk_attention_config", "rope_scaling", *(() if sparse else MOE_ONLY)):
        del raw[key]  # the published files leave out what a model has not
    if config.quantization_config:
        raw["quantization_config"] = written(config.quantization_config)
    if chunk:
        raw["dual_chunk_attention_config"] = chunk._asdict()
    if scaling:
        raw["rope_scaling"] = written_scaling(scaling)
    raw["architectures"] = ["Qwen2MoeForCausalLM" if sparse else "Qwen2ForCausalLM"]
    raw["hidden_act"] = "silu"
    raw["use_sliding_window"] = config.sliding_window is not None
    if len(config.eos_token_id) < 2:
        raw["eos_token_id"] = config.eos_token_id[0] if config.eos_token_id else None
    if config.num_attention_heads * config.head_dim == config.hidden_size:
        del raw["head_dim"]  # the published files leave it out, too
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


def written_scaling(scaling: RopeScaling) -> dict:
    """How config.json says it, in the words of the published model cards.

    >>> written_scaling(RopeScaling(4.0, 32768))
    {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32768}
    """
    usual = RopeScaling._field_defaults
    numbers = {key: value for key, value in scaling._asdict().items() if key not in usual or value != usual[key]}
    return {"type": "yarn", **numbers}
