"""Weight formats: in which type each tensor of a model is kept.

    f32     four bytes a weight
    bf16    two bytes: what is published
    int8    8.5 bits a weight, whole numbers with a scale for each 32 of them (`backends.quantised` says what is lost)
    int4    4.5 bits; the embedding and the head stay int8, because errors there are seen at once and they are few

A format is about matrices. Vectors (norms, biases) are float32 in every format: they are a thousandth of the bytes, and
every token feels them. Two matrices are never quantised, because they decide and do not only add up: the router of a
mixture of experts, and the shared expert's gate. In int8 and int4 they are bfloat16.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from backends.interface import shape_only
from backends.quantised import BITS, Quantised, stored_shapes
from tinyqwen.config import Config
from tinyqwen.weights import Node, fill, tensor_shapes, tree

FORMATS = ("f32", "bf16", "int8", "int4")
QUANTISED = tuple(BITS)
DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "f64": np.dtype(np.float64)}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
GATES = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")


def format_of(name: str, shape: tuple[int, ...], format: str, tables: str = "int8") -> str:
    """The format of one tensor in a model of that format. `tables`: that of embedding and head when the model is int4.

    >>> [format_of("model.layers.0.mlp.up_proj.weight", (64, 64), format) for format in FORMATS]
    ['f32', 'bf16', 'int8', 'int4']
    >>> format_of("lm_head.weight", (99, 64), "int4"), format_of("model.layers.0.mlp.gate.weight", (4, 64), "int8")
    ('int8', 'bf16')
    """
    if len(shape) == 1:
        return "f32" if format in FORMATS else format
    if format in QUANTISED and name.endswith(GATES):
        return "bf16"
    return tables if format == "int4" and name in TABLES else format


def shape_tensor(shape: tuple[int, ...], format: str) -> Any:
    """A tensor of that format without data: it has a shape and `nbytes`, which is all that costs and plans need.

    >>> [shape_tensor((16, 64), format).nbytes for format in FORMATS]
    [4096, 2048, 1088, 576]
    """
    if format not in QUANTISED:
        return shape_only(shape, DTYPES[format])
    O, I = shape  # noqa: E741
    values, scales = stored_shapes(BITS[format], shape)
    return Quantised(BITS[format], (O, I), shape_only(values, np.uint8), shape_only(scales, DTYPES["bf16"]))


def shape_weights(config: Config, format: str = "f32", tables: str = "int8") -> Node:
    """A model's weights in that format without data."""
    return tree(fill(config, lambda name, shape: shape_tensor(shape, format_of(name, shape, format, tables))))


def weight_bytes(config: Config, format: str, tables: str = "int8") -> int:
    """Bytes of all tensors in a checkpoint of that format, where vectors are bf16 unless all is f32.

    In memory, vectors are float32; `tinyqwen.plan.memory` counts them so.

    >>> from tinyqwen.sizes import SIZES
    >>> [weight_bytes(SIZES["0.5B"].config(), format) for format in ("bf16", "int8")]
    [988065536, 524976896]
    """
    total = 0
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            total += math.prod(shape) * (4 if format == "f32" else 2)
        else:
            total += shape_tensor(shape, format_of(name, shape, format, tables)).nbytes
    return total
