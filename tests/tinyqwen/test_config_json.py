"""config.json: what is understood, and what is refused rather than ignored."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import CONFIGS, dense_config, moe_config, window_config
from tinyqwen.config import FULL, SLIDING, Config, RopeScaling
from tinyqwen.config_json import parse_config, read_config, to_json
from tinyqwen.config_rules import NO_EFFECT, RULES
from tinyqwen.errors import ModelFilesError

DENSE = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
}  # fmt: skip
MOE = {
    **DENSE, "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}  # fmt: skip
CHUNKS = {"chunk_size": 1024, "local_size": 64}


def refusal(raw, **settings) -> str:
    with pytest.raises(ModelFilesError) as error:
        parse_config(raw, **settings)
    return str(error.value)


# ---- what is understood -------------------------------------------------------------------------------------------


def test_every_published_file_is_understood(data):
    paths = sorted((data / "configs").rglob("*.config.json"))
    assert len(paths) == 15
    for path in paths:
        config = read_config(path)
        assert config.sliding_window is None and set(config.layer_types) == {FULL}, "no published model slides"
        assert config.rope_theta == 1e6 and config.torch_dtype == "bfloat16" and len(config.eos_token_id) == 1


def test_missing_keys_have_the_defaults_of_the_format():
    """rope_theta above all: 10000, not the 1000000 that every published file sets."""
    config = parse_config({key: value for key, value in DENSE.items()})
    assert (config.rope_theta, config.rms_norm_eps, config.max_position_embeddings) == (10000.0, 1e-6, 32768)
    assert not config.tie_word_embeddings and config.qkv_bias and config.head_dim == 8
    assert parse_config({**DENSE, "num_key_value_heads": None}).num_key_value_heads == 8


def test_the_spellings_of_transformers_4_and_5_say_the_same():
    four = {**DENSE, "rope_theta": 1e6, "torch_dtype": "bfloat16"}
    five = {**DENSE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "dtype": "bfloat16"}
    both = {**four, **five, "rope_scaling": None}
    scaling = {**four, "rope_scaling": {"type": "default"}}
    assert parse_config(four) == parse_config(five) == parse_config(both) == parse_config(scaling)
    assert parse_config(four).rope_theta == 1e6


def test_two_spellings_that_disagree_are_refused():
    rope = {"rope_type": "default", "rope_theta": 1e6}
    assert "rope_theta is 10000.0 but rope_parameters says 1000000.0" in refusal(
        {**DENSE, "rope_theta": 1e4, "rope_parameters": rope}
    )


PUBLISHED = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}  # of the cards of 7B and 72B


def test_every_spelling_of_yarn_says_the_same():
    """`type` and `rope_type`, transformers 4 and 5; the trained context may be left to max_position_embeddings."""
    expected = RopeScaling(4.0, 32768)
    spellings = [
        {"rope_scaling": PUBLISHED},
        {"rope_scaling": {**PUBLISHED, "rope_type": "yarn"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"rope_scaling": {**PUBLISHED, "beta_fast": None, "attention_factor": None}, "max_position_embeddings": 131072},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "mscale": None}},
        {"rope_scaling": PUBLISHED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ]
    for keys in spellings:
        config = parse_config({**DENSE, "rope_theta": 1e6, **keys})
        assert (config.rope_scaling, config.context, config.rope_theta) == (expected, 131072, 1e6), keys
    assert parse_config(DENSE).context == 32768 and parse_config(DENSE).rope_scaling is None


def test_every_key_of_yarn_arrives():
    keys = dict(
        factor=2.5, original_max_position_embeddings=8192, attention_factor=0.5, beta_fast=16, beta_slow=2.0,
        mscale=0.7, mscale_all_dim=1.1, truncate=False,
    )  # fmt: skip
    assert parse_config({**DENSE, "rope_scaling": {"type": "yarn", **keys}}).rope_scaling == RopeScaling(**keys)


def test_two_rope_scalings_that_disagree_are_refused():
    five = {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}
    assert "which is right?" in refusal({**DENSE, "rope_scaling": PUBLISHED, **five})


@pytest.mark.parametrize("key, values", {
    "factor": [None, 0, 0.5, 1001, "4", True, float("nan"), float("inf"), 10**400, [4]],
    "original_max_position_embeddings": [0, -1, 0.5, 4096.0, "4096", True, 2**25], "truncate": [None, 0, "false"],
    "attention_factor": [0, -1, "1"], "beta_fast": [0, "32", True, float("inf")], "beta_slow": [0, -1, []],
    "mscale": [0, "1", float("nan")], "mscale_all_dim": [0, {}],
}.items())  # fmt: skip
def test_absurd_numbers_of_yarn_are_refused_with_their_name(key, values):
    for value in values:
        scaling = {**PUBLISHED, "mscale": 1.0, "mscale_all_dim": 1.0, key: value}
        assert f"its {key} must be" in refusal({**DENSE, "rope_scaling": scaling}), value


def test_the_first_layers_are_full_and_the_rest_slide():
    """Old documentation says the opposite; the code of transformers never did."""
    window = {**DENSE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    config = parse_config(window)
    assert config.layer_types == (FULL, FULL, SLIDING, SLIDING, SLIDING)
    assert [config.window(layer) for layer in range(5)] == [None, None, 7, 7, 7]
    config = parse_config({**window, "use_sliding_window": False})
    assert [config.window(layer) for layer in range(5)] == [None] * 5
    config = parse_config({**window, "layer_types": [SLIDING, FULL, FULL, FULL, SLIDING]})
    assert [config.window(layer) for layer in range(5)] == [7, None, None, None, 7]


def test_dual_chunk_attention_as_in_the_million_token_models():
    keys = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    config = parse_config({**DENSE, "max_position_embeddings": 1010000, "dual_chunk_attention_config": keys})
    chunk = config.dual_chunk_attention_config
    assert chunk._asdict() == keys and chunk.chunk_len == 253952 and config.context == 4 * 262144
    assert parse_config(json.loads(to_json(config))) == config
    plain = parse_config({**DENSE, "dual_chunk_attention_config": CHUNKS}).dual_chunk_attention_config
    assert plain.original_max_position_embeddings == 0, "no temperature unless asked for"
    assert parse_config({**DENSE, "dual_chunk_attention_config": None}) == parse_config(DENSE)


def test_which_layers_are_sparse():
    sparse = lambda **keys: [n for n in range(5) if parse_config({**MOE, **keys}).is_sparse(n)]  # noqa: E731
    assert sparse() == [0, 1, 2, 3, 4]
    assert sparse(decoder_sparse_step=2) == [1, 3]
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[0, 3]) == [1]
    assert sparse(mlp_only_layers=None) == [0, 1, 2, 3, 4]
    assert not parse_config(DENSE).is_sparse(0)


def test_keys_of_a_sparse_model_say_nothing_about_a_dense_one():
    stray = {"num_experts": 0, "num_experts_per_tok": 4, "decoder_sparse_step": 2, "mlp_only_layers": [0]}
    assert parse_config({**DENSE, **stray}) == parse_config(DENSE)


def test_one_end_token_or_several():
    ends = {None: (), 7: (7,), (7, 8): (7, 8)}
    for value, expected in ends.items():
        raw = list(value) if isinstance(value, tuple) else value
        assert parse_config({**DENSE, "eos_token_id": raw}).eos_token_id == expected


@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS.values(),
        dense_config(rope_scaling=RopeScaling(2, 99, 1.5, 9, 3, 0.5, 1, False)),
        dense_config(eos_token_id=(1, 2)),
        dense_config(eos_token_id=(3,)),
        Config(8, 16, 1, 2, 9),
    ],
)
def test_to_json_comes_back_as_it_was(config):
    assert parse_config(json.loads(to_json(config))) == config


@given(
    layers=st.integers(1, 6), groups=st.integers(1, 4), share=st.integers(1, 4), half=st.integers(1, 8),
    tied=st.booleans(), theta=st.floats(1, 1e9), eps=st.floats(1e-9, 1e-2), window=st.none() | st.integers(1, 99),
    experts=st.integers(0, 5), data=st.data(),
)  # fmt: skip
def test_to_json_of_any_config_comes_back(layers, groups, share, half, tied, theta, eps, window, experts, data):
    fields = dict(
        hidden_size=data.draw(st.integers(1, 99)), num_hidden_layers=layers, num_attention_heads=groups * share,
        num_key_value_heads=groups, head_dim=2 * half, tie_word_embeddings=tied, rope_theta=theta, rms_norm_eps=eps,
    )  # fmt: skip
    if window:
        kinds = st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers)
        fields.update(sliding_window=window, layer_types=tuple(data.draw(kinds)))
    if experts:
        fields.update(
            num_experts=experts, num_experts_per_tok=data.draw(st.integers(1, experts)),
            decoder_sparse_step=data.draw(st.integers(1, 3)), norm_topk_prob=data.draw(st.booleans()),
            mlp_only_layers=tuple(data.draw(st.sets(st.integers(0, layers - 1)))), qkv_bias=data.draw(st.booleans()),
        )  # fmt: skip
    config = moe_config(**{"mlp_only_layers": (), **fields}) if experts else dense_config(**fields)
    assert parse_config(json.loads(to_json(config))) == config


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"rope_scaling": {"rope_type": "yarn", "type": "yarn"}}, ["rope_scaling", "its factor must be a number"]),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}}, ["rope_scaling", "linear, yarn"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}}, ["mscale_all_dim", "together"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_slow": 33}}, ["beta_fast", "beta_slow"]),
        ({"rope_scaling": {"type": "yarn", "factor": 1000}}, ["rope_scaling", "32768", "16777216"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1.0}, ["rope_scaling", "rope_theta"]),
        *(
            ({"rope_scaling": {"type": kind, "factor": 2.0}}, ["rope_scaling", kind, "only yarn"])
            for kind in ("linear", "dynamic", "llama3", "longrope")
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope_parameters", "longrope"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "object"]),
        ({"rope_scaling": {}}, ["rope_scaling"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config", "gptq"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"use_mrope": True}, ["use_mrope"]),
        *(
            ({"dual_chunk_attention_config": value}, ["dual_chunk_attention_config", *words])
            for value, words in [
                ({"chunk_size": 1024}, ["its local_size must be a whole number"]),
                ({"chunk_size": 1024, "local_size": 1024}, ["smaller than chunk_size"]),
                ({"chunk_size": 1024, "local_size": 0}, ["local_size must be a whole number from 1"]),
                ({"chunk_size": 1024.5, "local_size": 64}, ["chunk_size must be a whole number"]),
                ({"chunk_size": 65536, "local_size": 64}, ["65536", "distances up to 32768 only"]),
                ({"chunk_size": 1024, "local_size": 64, "speed": 3}, ["speed"]),
                (
                    {"chunk_size": 1024, "local_size": 64, "sparse_attention_enabled": True},
                    ["sparse attention", "remove sparse_attention_enabled"],
                ),
                ([1024, 64], ["object"]),
            ]
        ),
        (
            {"dual_chunk_attention_config": CHUNKS, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            ["rope_scaling and dual_chunk_attention_config", "leave one out", "original_max_position_embeddings"],
        ),
        (
            {"dual_chunk_attention_config": CHUNKS, "use_sliding_window": True, "sliding_window": 9},
            ["dual_chunk_attention_config", "use_sliding_window"],
        ),
        ({"logit_scale": 2.0}, ["logit_scale", "--ignore-config logit_scale"]),
        ({"use_sliding_window": True, "sliding_window": None}, ["sliding_window"]),
        ({"use_sliding_window": True, "sliding_window": 0}, ["sliding_window"]),
        ({"layer_types": [FULL]}, ["layer_types", "5"]),
        ({"layer_types": [SLIDING] * 5}, ["use_sliding_window"]),
        ({"layer_types": ["chunked"] * 5}, ["chunked"]),
        ({"num_experts": 8}, ["num_experts", "qwen2"]),
        ({"qkv_bias": False}, ["qkv_bias"]),
        ({"model_type": "llama"}, ["llama"]),
        ({"model_type": "qwen2_vl"}, ["qwen2_vl"]),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": ["qwen2"]}, ["model_type"]),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(keys, words):
    message = refusal({**DENSE, **keys})
    assert all(word in message for word in words), message


def test_a_sliding_window_in_a_sparse_model_must_say_which_layers():
    """Releases of transformers disagree."""
    window = {**MOE, "use_sliding_window": True, "sliding_window": 4}
    assert "layer_types" in refusal(window)
    assert parse_config({**window, "layer_types": [FULL, *[SLIDING] * 4]}).window(1) == 4


def test_an_unknown_key_can_be_ignored_on_purpose():
    raw = {**DENSE, "logit_scale": 2.0, "extra": 1}
    assert parse_config(raw, ignore=("logit_scale", "extra")) == parse_config(DENSE)
    assert "extra" in refusal(raw, ignore=("logit_scale",))


def test_a_key_has_a_rule_or_no_effect_and_never_both():
    assert not RULES.keys() & NO_EFFECT


ABSURD = [0, -1, 1.5, "64", True, [], {}, 10**12, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "max_position_embeddings", "head_dim", "decoder_sparse_step"],
)  # fmt: skip
def test_absurd_counts_are_refused_with_their_name(key, value):
    assert key in refusal({**DENSE, key: value})


@pytest.mark.parametrize("key, values", {
    "rms_norm_eps": [0, -1e-6, 1, "1e-6", True, None, float("nan"), float("inf")],
    "rope_theta": [0, -1, 0.5, 1e13, 10**400, "1e6", True, None, float("nan"), float("inf")],
    "num_experts": [-1, 2.0, "8", True, 10**12], "num_experts_per_tok": [0, -1, 7, 2.5, True],
    "moe_intermediate_size": [0, -1, "24"], "shared_expert_intermediate_size": [0, 10**12, None],
    "mlp_only_layers": [[5], [-1], ["0"], [True], 3, {}], "tie_word_embeddings": [0, 1, "true", None],
    "eos_token_id": [-1, "x", [1, -2], [1.5], True, 2**40], "sliding_window": [-1, 1.5, "9"],
    "layer_types": ["full_attention", [1], 5], "norm_topk_prob": [0, None], "torch_dtype": [32, ["float32"]],
}.items())  # fmt: skip
def test_absurd_values_are_refused_with_their_name(key, values):
    for value in values:
        assert key in refusal({**MOE, key: value}), value


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"num_key_value_heads": 3}, ["num_attention_heads 8", "num_key_value_heads 3"]),
        ({"hidden_size": 65}, ["hidden_size 65", "num_attention_heads 8"]),
        ({"hidden_size": 72}, ["head_dim is odd"]),
        ({"head_dim": 9}, ["head_dim is odd"]),
        ({"hidden_size": 65, "num_key_value_heads": 3}, ["hidden_size 65", "num_key_value_heads 3"]),
    ],
)
def test_sizes_must_fit_each_other(keys, words):
    message = refusal({**DENSE, **keys})
    assert all(word in message for word in words), message


def test_all_bad_fields_are_listed_at_once():
    message = refusal({**MOE, "hidden_size": -1, "vocab_size": "many", "rope_theta": float("nan"), "nonsense": [1]})
    for word in ("hidden_size is -1", 'vocab_size is "many"', "rope_theta is NaN", "nonsense"):
        assert word in message
    missing = refusal({"model_type": "qwen2_moe"})
    for key in MOE:
        assert key in ("model_type", "num_key_value_heads") or f"{key} is missing" in missing


@pytest.mark.parametrize("text, word", [("", "JSON"), ("[1, 2]", "list"), ("{", "JSON"), ("null", "NoneType"),
                                        ("[" * 100_000, "JSON"), ("\ufeff{}", "JSON")])  # fmt: skip
def test_a_broken_file_is_one_clear_line_with_its_path(tmp_path, text, word):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelFilesError, match=r"config\.json") as error:
        read_config(path)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_one_clear_line(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    for name, word in (("nothing.json", "no config.json there"), ("binary", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(ModelFilesError, match=word):
            read_config(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.integers(0, 9) | st.sampled_from(["qwen2", "default", "yarn", FULL, SLIDING, "bfloat16", 1e6, 10**400])
ROPE = st.fixed_dictionaries({"type": st.sampled_from(["yarn", "default"])}, optional={
    "rope_type": LIKELY | JSON, "rope_theta": LIKELY | JSON, "mscale": LIKELY | JSON, "mscale_all_dim": LIKELY,
    "factor": st.floats(1, 9) | LIKELY | JSON, "original_max_position_embeddings": LIKELY, "beta_fast": LIKELY | JSON,
})  # fmt: skip
KEYS = st.sampled_from([*RULES, *sorted(NO_EFFECT)[:5], "dtype", "rope_scaling", "rope_parameters", "new"])


@given(st.sampled_from([{}, DENSE, MOE]), st.dictionaries(KEYS, LIKELY | JSON | ROPE | st.lists(LIKELY), max_size=4))
def test_any_json_object_gives_a_config_or_a_clear_error(base, changes):
    try:
        config = parse_config({**base, **changes})
    except ModelFilesError as error:
        assert str(error)
    else:
        assert parse_config(json.loads(to_json(config))) == config


@given(JSON)
def test_any_json_value_gives_a_clear_error(value):
    assert refusal(value)


def test_the_letters_of_the_legend():
    assert window_config().letters == {
        "D": 20, "H": 6, "G": 2, "R": 3, "K": 10, "Kh": 5, "F": 28, "V": 41, "L": 3,
    }  # fmt: skip
    assert {"E": 9, "A": 4, "M": 13}.items() <= moe_config().letters.items()
