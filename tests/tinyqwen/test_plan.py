"""Plans: counted memory is what a real run allocates, work equals closed forms, and no floor is above another's."""

import json
import tracemalloc

import pytest

import backends
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import CONFIGS, dense_config, moe_config
from tinyqwen.checkpoint import save_checkpoint
from tinyqwen.cli.main import main
from tinyqwen.devices import DEVICES
from tinyqwen.formats import FORMATS, shape_weights, weight_bytes
from tinyqwen.kv_cache import KV_FORMATS, KVCache
from tinyqwen.machine import Machine
from tinyqwen.model import forward
from tinyqwen.plan import memory, work
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import count_parameters, random_weights, tree


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_cache_are_what_a_real_run_allocates_to_the_byte(name):
    config = CONFIGS[name]
    tensors = random_weights(config)
    cache = KVCache(backends.get("numpy"), config)
    cache.reserve(512, step=256)  # a capacity that doubling hits exactly; between them there is room to spare
    planned = memory(config, 512)
    assert planned.weights == sum(tensor.nbytes for tensor in tensors.values())
    assert planned.kv == cache.nbytes


@pytest.mark.parametrize("kv", KV_FORMATS)
def test_a_cache_of_every_format_is_planned_to_the_byte(kv):
    cache = KVCache(backends.get("numpy"), CONFIGS["dense"], kv)
    cache.reserve(512)
    assert memory(CONFIGS["dense"], 512, kv=kv).kv == cache.nbytes


@pytest.mark.parametrize("size", SIZES)
def test_weight_bytes_are_the_checkpoints(size):
    config = SIZES[size].config()
    assert weight_bytes(config, "bf16") == 2 * count_parameters(config)["total"]
    assert [weight_bytes(config, format) for format in FORMATS] == sorted(
        (weight_bytes(config, format) for format in FORMATS), reverse=True
    )


def test_the_file_of_a_planned_model_has_the_planned_size(tmp_path):
    config = CONFIGS["moe"]
    save_checkpoint(tmp_path, config, random_weights(config), dtype="bfloat16")
    file = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == weight_bytes(config, "bf16")


@pytest.mark.parametrize("make", [dense_config, moe_config])
def test_the_planned_peak_is_within_a_tenth_of_the_measured_one(make):
    """NumPy reports its allocations to tracemalloc: a chunk of 256 at the end of 1024 tokens, weights included."""
    config = make(hidden_size=128, intermediate_size=344, num_attention_heads=8, head_dim=16, vocab_size=2000)
    backend = backends.get("numpy")
    planned = memory(config, 1024)
    tracemalloc.start()
    try:
        weights = tree(random_weights(config))
        cache = KVCache(backend, config)
        cache.reserve(1024)
        cache.length = 1024 - 256
        for pair in cache.layers:
            pair[...] = 0
        tracemalloc.reset_peak()
        forward(backend, config, weights, make_step([([1] * 256, cache)]))
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert abs(planned.total + planned.scores - measured) < 0.1 * measured, (planned, measured)


def test_work_does_not_depend_on_how_a_prompt_is_cut():
    """FLOPs of one prefill equal those of token by token, but for the logits: only the last token's are computed."""
    config = CONFIGS["window"]
    weights = shape_weights(config)
    whole = work(config, weights, 12, 12).flops
    parts = sum(work(config, weights, 1, depth + 1).flops for depth in range(12))
    per_token_head = 2 * config.hidden_size * config.vocab_size + 4 * config.hidden_size + 2
    assert whole == parts - 11 * per_token_head


def test_smaller_formats_move_fewer_bytes_and_are_never_slower():
    config, machine = SIZES["0.5B"].config(), Machine("toy", 50e9, 1e12)
    tokens = {format: work(config, shape_weights(config, format), 1, 4096) for format in FORMATS}
    floors = [tokens["f32"].floor(machine), *(token.floor(machine, 0.5) for token in tokens.values())]
    assert floors == sorted(floors, reverse=True)
    cache = 4096 * 4 * config.kv_values_per_token
    assert tokens["f32"].moved(1) - tokens["f32"].moved(0.5) == pytest.approx(cache / 2, rel=1e-3)
    for format, token in tokens.items():
        saved = weight_bytes(config, "f32") - weight_bytes(config, format)
        assert tokens["f32"].moved() - token.moved() == pytest.approx(saved, rel=1e-3)


def test_a_prompt_of_the_full_context_is_planned_at_once():
    config = SIZES["72B"].config(base=True)
    attention = 80 * 64 * (131072 * 131073 // 2) * (4 * 128 + 5)
    products = 2 * 131072 * (count_parameters(config)["total"] - 2 * 152064 * 8192)
    assert work(config, shape_weights(config), 131072, 131072).flops == pytest.approx(attention + products, rel=1e-3)


# ---- the command ----


def run(capsys, *arguments):
    code = main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_plans_one_size(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "--size", "72B", "--context", "131072", "--dtype", "int4")
    assert code == 0 and "H200" in out and "42,949,672,960 bytes" in out
    assert max(map(len, out.splitlines())) <= 80
    facts = json.loads(run(capsys, "--size", "72B", "--context", "131072", "--dtype", "int4", "--json")[1])
    assert facts["memory"]["total"] == sum(facts["memory"][key] for key in ("weights", "kv", "activations", "logits"))
    assert set(facts["devices"]) == set(DEVICES)
    assert facts["devices"]["H200"]["fits"] and not facts["devices"]["RTX 4090"]["fits"]


def test_the_command_plans_what_yarn_makes_room_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    facts = json.loads(run(capsys, "--size", "7B", "--yarn", "4", "--kv-dtype", "int8", "--json")[1])
    assert facts["context"] == facts["context_of_model"] == 131072
    assert facts["memory"]["kv"] == 131072 * 29568, "2 x 28 layers x 4 heads x (128 values and a scale of 4 bytes)"
    assert facts["beyond"] is None
    out = run(capsys, "--size", "7B", "--context", "131072")[1]
    assert "looks at 32,768 tokens; stretch it with --yarn 4, to 131072" in out


def test_the_command_plans_all_sizes_and_a_folder_and_this_machine(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("tinyqwen.cli.plan.measure", lambda: Machine("this machine", 1e10, 1e11))
    code, out, _ = run(capsys)
    assert code == 0 and all(size in out for size in SIZES)
    write_tiny_checkpoint(tmp_path)
    code, out, _ = run(capsys, "--model", str(tmp_path), "--device", "this")
    assert code == 0 and "this machine" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "8B"], "2.5-7B"),
        (["--context", "0"], "--context"),
        (["--device", "abacus"], "RTX 4090"),
        (["--size", "7B", "--model", "x"], "not both"),
    ],
)
def test_wrong_usage_is_one_clear_line(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
