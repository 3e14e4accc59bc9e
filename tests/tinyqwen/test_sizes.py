"""The published sizes: equal to the published configs, and to the parameter counts of the model cards."""

import pytest

from tinyqwen.config_json import read_config
from tinyqwen.sizes import CONTRADICTIONS, SIZES
from tinyqwen.weights import count_parameters

# The published config files: which size and variant each one is.
FILES = {
    "Qwen2-0.5B-Instruct": "0.5B", "Qwen2.5-0.5B-Instruct": "2.5-0.5B", "Qwen2.5-1.5B": "2.5-1.5B",
    "Qwen2.5-7B-Instruct": "2.5-7B", "transcribed/Qwen2-0.5B": "0.5B", "transcribed/Qwen2-1.5B-Instruct": "1.5B",
    "transcribed/Qwen2-7B": "7B", "transcribed/Qwen2-72B": "72B", "transcribed/Qwen2-72B-Instruct": "72B",
    "transcribed/Qwen2-57B-A14B": "57B-A14B", "transcribed/Qwen2.5-3B": "2.5-3B",
    "transcribed/Qwen2.5-3B-Instruct": "2.5-3B", "transcribed/Qwen2.5-7B": "2.5-7B",
    "transcribed/Qwen2.5-14B": "2.5-14B", "transcribed/Qwen2.5-32B": "2.5-32B",
}  # fmt: skip

# total and non-embedding parameters to the last one, as the checkpoints hold them
EXACT = {
    "0.5B": (494_032_768, 357_898_112),
    "1.5B": (1_543_714_304, 1_310_340_608),
    "7B": (7_615_616_512, 6_525_621_760),
    "57B-A14B": (57_408_658_944, 56_319_581_696),
    "72B": (72_706_203_648, 70_214_787_072),
    "2.5-3B": (3_085_938_688, 2_774_773_760),
}

# in billions, as the model cards print them
CARDS = {
    "0.5B": (0.49, 0.36), "1.5B": (1.54, 1.31), "7B": (7.61, 6.53), "57B-A14B": (57.4, None), "72B": (72.7, 70.2),
    "2.5-0.5B": (0.49, 0.36), "2.5-1.5B": (1.54, 1.31), "2.5-3B": (3.09, 2.77), "2.5-7B": (7.61, 6.53),
    "2.5-14B": (14.7, 13.1), "2.5-32B": (32.5, 31.0), "2.5-72B": (72.7, 70.0),
}  # fmt: skip


@pytest.mark.parametrize("file, name", FILES.items())
def test_equals_the_published_file_in_every_field(data, file, name):
    published = read_config(data / "configs" / f"{file}.config.json")
    assert SIZES[name].config(base="Instruct" not in file) == published


def test_every_published_config_file_is_compared(data):
    there = {path.relative_to(data / "configs").as_posix() for path in (data / "configs").rglob("*.config.json")}
    assert there == {f"{file}.config.json" for file in FILES}


@pytest.mark.parametrize("name, counts", EXACT.items())
def test_parameters_are_exact(name, counts):
    counted = count_parameters(SIZES[name].config())
    assert (counted["total"], counted["non_embedding"]) == counts


@pytest.mark.parametrize("name", SIZES)
def test_parameters_agree_with_the_model_card(name):
    """Within one per cent: the cards cut (32.76 to 32.5) as often as they round."""
    counted = count_parameters(SIZES[name].config())
    for card, exact in zip(CARDS[name], (counted["total"], counted["non_embedding"])):
        assert card is None or exact / 1e9 == pytest.approx(card, rel=0.0101)


def test_active_parameters_of_the_mixture_of_experts():
    """Published as 14 B: 8 of the 64 experts, the shared one, and everything that is not an expert."""
    counted = count_parameters(SIZES["57B-A14B"].config())
    assert counted["active"] == 14_249_270_784  # with both tables
    assert counted["total"] - counted["active"] == 49_325_015_040 * 7 // 8  # of the routed experts, 56 of 64 are idle
    dense = count_parameters(SIZES["7B"].config())
    assert dense["active"] == dense["total"]


def test_the_kv_cache_per_token():
    """In bfloat16, two bytes a value."""
    published = {"0.5B": 12288, "1.5B": 28672, "7B": 57344, "72B": 327680, "2.5-3B": 36864, "57B-A14B": 57344}
    assert {name: 2 * SIZES[name].config().kv_values_per_token for name in published} == published


def test_contradictions_name_known_sizes():
    assert set(CONTRADICTIONS) <= {*SIZES, "*"}


def test_hub_names():
    assert SIZES["0.5B"].hub_id() == "Qwen/Qwen2-0.5B-Instruct"
    assert SIZES["2.5-0.5B"].hub_id(base=True) == "Qwen/Qwen2.5-0.5B"
    assert SIZES["57B-A14B"].hub_id() == "Qwen/Qwen2-57B-A14B-Instruct"
