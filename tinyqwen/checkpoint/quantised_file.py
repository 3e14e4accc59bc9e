"""How quantised weights lie in a safetensors file: what `tinyqwen convert` writes, and what is kept between starts.

A quantised matrix is two tensors under its own name, the layout of `backends.quantised` as it is in memory, so that a
mapped file is a loaded model:

    model.layers.0.self_attn.q_proj.weight         U8     values_PQRB
    model.layers.0.self_attn.q_proj.weight_scale   BF16   scales_PGR

The other tensors are as everywhere: gates in BF16, vectors in the type that they had. config.json says which format:

    "quantization_config": {
        "quant_method": "tinyqwen", "version": 1, "group_size": 32, "format": "int4", "tables": "int8"
    }

The header is filled up with spaces to a multiple of 64 bytes, and tensors whose size is one come first: vectors of 64
bytes then never straddle two cache lines, and pages of a scale lie beside those of its values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from backends.quantised import BITS, Quantised, stored_shapes
from tinyqwen.config import Config
from tinyqwen.formats import format_of
from tinyqwen.weights import tensor_shapes

SCALE = "_scale"
ALIGNMENT = 64

Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> type in the file ("" means any float) and shape


def entries_of(name: str, shape: tuple[int, ...], format: str) -> Entries:
    """What a tensor of that format is in a file.

    >>> entries_of("lm_head.weight", (99, 64), "int8")
    {'lm_head.weight': ('U8', (7, 16, 16, 4)), 'lm_head.weight_scale': ('BF16', (7, 2, 16))}
    >>> entries_of("model.norm.weight", (64,), "f32")
    {'model.norm.weight': ('F32', (64,))}
    """
    if format not in BITS:
        return {name: ({"f32": "F32", "bf16": "BF16"}[format], shape)}
    values, scales = stored_shapes(BITS[format], shape)
    return {name: ("U8", values), name + SCALE: ("BF16", scales)}


def quantised_entries(config: Config) -> Entries:
    """All tensors to expect in the files of a quantised model; vectors may be of any type."""
    entries: Entries = {}
    assert config.quantization_config
    format, tables = config.quantization_config.format, config.quantization_config.tables
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            entries[name] = "", shape
        else:
            entries |= entries_of(name, shape, format_of(name, shape, format, tables))
    return entries


def parts(name: str, tensor: np.ndarray | Quantised) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tensor, by their names in the file."""
    if isinstance(tensor, Quantised):
        yield name, tensor.values
        yield name + SCALE, tensor.scales
    else:
        yield name, tensor
