"""A Qwen2 model as an OpenVINO graph, with a KV cache of its own (`pip install 'tinyqwen[bench]'`).

The graph has the form of OpenVINO's published exports: variables for keys and values that grow by themselves, rows of
a batch that can be reordered, the logits of the last token only. The CPU plugin finds its fused operations in it
(RMSNorm, RoPE, attention with cache, matrix products with compressed weights); `fused` says which of them it found.

    bf16   matrices bfloat16
    int8   one scale for each row
    int4   groups of 128 along the input with a scale each; the embedding, which is the head too, is int8

Source: the graphs that optimum-intel exports and openvino.genai builds; nncf's symmetric INT8 and INT4 modes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinyqwen.bench.models import stored_tensors
from tinyqwen.config import Config
from tinyqwen.config_json import read_config
from tinyqwen.errors import UsageError
from tinyqwen.weights import tensor_shapes

INT4_GROUP = 128


def write_graph(folder: Path, path: Path, dtype: str, progress: Callable[[int, int], None] | None = None, group=None):
    """The model of that folder as PATH (.xml) and its weights beside it (.bin)."""
    import openvino

    config = read_config(folder / "config.json")
    total, constants = len(tensor_shapes(config)), {}
    for done, (name, array) in enumerate(stored_tensors(folder)):
        constants[name] = constant(name, array, dtype, group or INT4_GROUP)
        if progress:
            progress(done + 1, total)
    openvino.save_model(build(config, constants), path, compress_to_fp16=False)


def constant(name: str, array: np.ndarray, dtype: str, group: int):
    """The part of the graph that makes a float32 tensor of what is stored."""
    import openvino
    from openvino import opset13 as ops

    if array.ndim == 1 or dtype == "f32":
        return ops.constant(array, openvino.Type.f32)
    if dtype == "bf16":
        import ml_dtypes

        raw = array.astype(ml_dtypes.bfloat16).view(np.uint16)
        return ops.convert(stored(raw, array.shape, openvino.Type.bf16), "f32")
    if dtype == "int8" or "embed_tokens" in name or "lm_head" in name:
        values, scale = symmetric(array, 127)
        return ops.multiply(ops.convert(stored(values, values.shape, openvino.Type.i8), "f32"), scale_node(scale))
    rows, columns = array.shape
    while columns % group:
        group //= 2
    values, scale = symmetric(array.reshape(rows, columns // group, group), 7)
    packed = (values[..., 0::2] & 15 | values[..., 1::2] << 4).astype(np.uint8)  # the even column in the low half
    grouped = ops.multiply(ops.convert(stored(packed, values.shape, openvino.Type.i4), "f32"), scale_node(scale))
    return ops.reshape(grouped, ops.constant(np.array([rows, columns])), special_zero=False)


def stored(raw: np.ndarray, shape: tuple[int, ...], kind):
    """A constant of a type that NumPy does not have, from its bytes."""
    import openvino

    shared = openvino.Tensor(np.ascontiguousarray(raw), openvino.Shape(shape), kind)
    owned = openvino.Tensor(kind, openvino.Shape(shape))
    shared.copy_to(owned)  # the graph outlives the array
    return openvino.op.Constant(owned)


def symmetric(array: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -top to top, and one scale for the last axis of each.

    >>> symmetric(np.float32([[-1, 0.5]]), 127)[0]
    array([[-127,   64]], dtype=int8)
    """
    scale = np.maximum(np.abs(array).max(-1, keepdims=True), 1e-12) / top
    return np.round(array / scale).clip(-top, top).astype(np.int8), scale


def scale_node(scale: np.ndarray):
    from openvino import opset13 as ops

    return ops.convert(ops.constant(scale.astype(np.float16)), "f32")


# ---- the model ----


def build(config: Config, weights: dict):
    """The graph: input_ids [B, T], position_ids [B, T], beam_idx [B] -> logits [B, 1, V]."""
    import openvino
    from openvino import opset13 as ops

    ids_BT = ops.parameter([-1, -1], np.int64, name="input_ids")
    position_BT = ops.parameter([-1, -1], np.int64, name="position_ids")
    beam_B = ops.parameter([-1], np.int32, name="beam_idx")
    for node, name in ((ids_BT, "input_ids"), (position_BT, "position_ids"), (beam_B, "beam_idx")):
        node.output(0).set_names({name})
    zero = ops.constant(np.int64(0))

    table = weights["model.embed_tokens.weight"]
    x = ops.gather(table, ops.convert(ids_BT, "i32"), zero)
    batch = ops.gather(ops.shape_of(ids_BT), zero, zero)
    cos, sin = rope_tables(config, position_BT)
    mask, variables = causal_mask(position_BT), []
    cache = Cache(config, batch, beam_B, variables)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, weights[at + "input_layernorm.weight"], config.rms_norm_eps)
        x = ops.add(x, attention(config, weights, at + "self_attn.", normed, cos, sin, mask, cache, layer))
        normed = rms_norm(x, weights[at + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = ops.swish(linear(weights, at + "mlp.gate_proj", normed))
        up = linear(weights, at + "mlp.up_proj", normed)
        x = ops.add(x, linear(weights, at + "mlp.down_proj", ops.multiply(gate, up)))
    last = ops.slice(x, integers(-1), integers(2**31 - 1), integers(1), integers(1))
    last = rms_norm(last, weights["model.norm.weight"], config.rms_norm_eps)
    logits = ops.matmul(last, weights.get("lm_head.weight", table), False, True)
    result = ops.result(logits)
    result.output(0).set_names({"logits"})
    return openvino.Model([result], cache.sinks, [ids_BT, position_BT, beam_B], "qwen2")


def integers(*values: int):
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def linear(weights: dict, name: str, x):
    from openvino import opset13 as ops

    out = ops.matmul(x, weights[name + ".weight"], False, True)
    return ops.add(out, weights[name + ".bias"]) if name + ".bias" in weights else out


def rms_norm(x, weight, eps: float):
    from openvino import opset13 as ops

    square = ops.power(x, ops.constant(np.float32(2)))
    mean = ops.reduce_mean(square, integers(-1), True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.float32(eps))))
    return ops.multiply(weight, ops.multiply(x, ops.divide(ops.constant(np.float32(1)), root)))


def rope_tables(config: Config, position_BT):
    """cos and sin [B, 1, T, K], both halves alike."""
    from openvino import opset13 as ops

    if config.rope_scaling:
        raise UsageError("rope_scaling is not built into OpenVINO's graph; compare without it, its speed is the same")
    K = config.head_dim
    frequency = 1 / config.rope_theta ** (np.arange(0, K, 2, dtype=np.float64) / K)
    turn = ops.constant(frequency.astype(np.float32).reshape(1, K // 2, 1))
    angle = ops.matmul(turn, ops.convert(ops.unsqueeze(position_BT, integers(1)), "f32"), False, False)
    angle = ops.transpose(angle, integers(0, 2, 1))
    angle = ops.unsqueeze(ops.concat([angle, angle], -1), integers(1))
    return ops.cos(angle), ops.sin(angle)


def rope(x, cos, sin, K: int):
    """Half-split rotation, as Qwen2 has it."""
    from openvino import opset13 as ops

    first = ops.slice(x, integers(0), integers(K // 2), integers(1), integers(3))
    second = ops.slice(x, integers(K // 2), integers(2**31 - 1), integers(1), integers(3))
    turned = ops.concat([ops.multiply(second, ops.constant(np.float32(-1))), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def causal_mask(position_BT):
    """0 where a token may look, and the least number elsewhere: [B, 1, T, S]. Positions have no holes."""
    from openvino import opset13 as ops

    row = ops.gather(position_BT, ops.constant(np.int64(-1)), ops.constant(np.int64(1)))  # the last position of each
    length = ops.add(ops.reduce_max(row, integers(0), False), ops.constant(np.int64(1)))
    key = ops.range(ops.constant(np.int64(0)), length, ops.constant(np.int64(1)), "i64")
    key = ops.unsqueeze(key, integers(0, 1, 2))
    hidden = ops.greater(key, ops.unsqueeze(position_BT, integers(1, 3)))
    return ops.select(hidden, ops.constant(np.finfo(np.float32).min), ops.constant(np.float32(0)))


class Cache:
    """The variables that hold keys and values, [B, G, S, K] each."""

    def __init__(self, config: Config, batch, beam_B, variables):
        self.config, self.batch, self.beam_B, self.sinks = config, batch, beam_B, []

    def grow(self, name: str, new):
        """What the variable holds, with the new tokens behind it."""
        import openvino
        from openvino import opset13 as ops

        G, K = self.config.num_key_value_heads, self.config.head_dim
        info = openvino.op.util.VariableInfo()
        info.data_shape, info.data_type = openvino.PartialShape([-1, G, -1, K]), openvino.Type.f32
        info.variable_id = name
        variable = openvino.op.util.Variable(info)
        shape = ops.concat([ops.unsqueeze(self.batch, integers(0)), integers(G, 0, K)], 0)
        nothing = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = openvino.op.read_value(nothing, variable)
        past = ops.gather(past, self.beam_B, ops.constant(np.int64(0)))
        whole = ops.concat([past, new], 2)
        self.sinks.append(openvino.op.assign(whole, variable))
        return whole


def attention(config: Config, weights: dict, at: str, x, cos, sin, mask, cache: Cache, layer: int):
    from openvino import opset13 as ops

    H, G, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def heads(name: str, count: int):
        split = ops.reshape(linear(weights, at + name, x), integers(0, 0, count, K), special_zero=True)
        return ops.transpose(split, integers(0, 2, 1, 3))

    q, k, v = heads("q_proj", H), heads("k_proj", G), heads("v_proj", G)
    q, k = rope(q, cos, sin, K), rope(k, cos, sin, K)
    k, v = cache.grow(f"past.{layer}.key", k), cache.grow(f"past.{layer}.value", v)

    def shared(kv):  # each of G heads serves H / G queries
        if G == H:
            return kv
        wide = ops.broadcast(
            ops.unsqueeze(kv, integers(2)), integers(1, 1, H // G, 1, 1), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(wide, integers(0, H, -1, K), special_zero=True)

    out = ops.scaled_dot_product_attention(q, shared(k), shared(v), mask)
    out = ops.reshape(ops.transpose(out, integers(0, 2, 1, 3)), integers(0, 0, H * K), special_zero=True)
    return linear(weights, at + "o_proj", out)


def fused(compiled) -> dict[str, int]:
    """Which kinds of operations the plugin made of the graph, and how many of each."""
    kinds: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = f"{info['layerType'].value} {info['runtimePrecision'].value}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
