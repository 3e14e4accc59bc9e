"""The measurements of a GPU, tried on the stand-in for CuPy: that they run, and what they say; not how fast it is."""

from __future__ import annotations

import pytest

from backends.cuda import Cuda
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy
from tests.helpers import dense_config, moe_config
from tinyqwen.bench import gpu

CONFIG = dense_config(num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=32, intermediate_size=64)


@pytest.fixture(scope="module")
def cuda():
    if why := host.missing():
        pytest.skip(why)
    return Cuda(FakeCupy(memory=1 << 30))


@pytest.mark.parametrize(("config", "format"), [
    (CONFIG, "bf16"), (CONFIG, "int8"), (CONFIG, "int4"), (moe_config(), "bf16"),
], ids=["bf16", "int8", "int4", "moe"])  # fmt: skip
def test_every_question_gets_a_row_with_its_share_of_the_ceiling(cuda, config, format):
    limits = gpu.ceilings(cuda, quick=True)
    found = list(
        gpu.measure(cuda, "tiny", config, format, limits, depths=(0, 40), prompts=(40,), tokens=3, together=(2,))
    )
    assert [row["what"] for row in found] == ["decode behind 0", "decode behind 40", "2 together", "prompt of 40"]
    assert all(row["tokens_s"] > 0 and row["share"] == pytest.approx(row["tokens_s"] / row["ceiling"]) for row in found)


def test_a_model_that_is_too_large_is_left_out_with_numbers(cuda, monkeypatch):
    monkeypatch.setattr(cuda.xp.cuda, "free", 1000)
    (row,) = gpu.measure(cuda, "tiny", CONFIG, "bf16", gpu.Limits(1, {"bf16": 1}))
    assert row["what"] == "left out" and "GB are free" in row["why"]
