"""Which part of a model goes to a GPU, which stays with the processor, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backends
from backends.split import Split
from tinyqwen.checkpoint.upload import bytes_to_move
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.formats import QUANTISED, shape_weights
from tinyqwen.memory import require


def split(device: Any, layers: int, threads: int | None) -> backends.Backend:
    """That device for the first layers, the cpu backend for the rest."""
    if device.name != "cuda":
        raise UsageError(f"--gpu-layers needs a GPU, and this is the {device.name} backend")
    if layers < 1:
        raise UsageError(f"--gpu-layers must be at least 1, is {layers}; --backend cpu uses no GPU")
    return Split(device, backends.get("cpu", threads=threads), layers)


def stays_here(gpu_layers: int | None) -> Callable[[str], bool]:
    """Whether a tensor of that path belongs to a layer that the device does not run.

    >>> stays = stays_here(2)
    >>> stays("layers.1.mlp.up_proj.weight"), stays("layers.2.mlp.up_proj.weight"), stays("norm.weight")
    (False, True, False)
    """
    if gpu_layers is None:
        return lambda path: False
    return lambda path: path.startswith("layers.") and int(path.split(".")[1]) >= gpu_layers


def free_bytes(backend: Any) -> int | None:
    """Memory that is left where a backend's arrays lie; None: this machine's, which `memory.py` knows."""
    while isinstance(backend, backends.Wrapper):
        backend = backend.inner
    return backend.free_bytes() if hasattr(backend, "free_bytes") else None


def check_device(backend: Any, config: Config, format: str, tables: str | None, gpu_layers: int | None) -> None:
    """DoesNotFitError before anything is copied, with how many layers would fit, if the weights do not."""
    shapes, room = shape_weights(config, format, tables or "int8"), int(0.95 * (free_bytes(backend) or 0))
    needed = bytes_to_move(shapes, stays_here(gpu_layers))
    if needed <= room:
        return
    layers = config.num_hidden_layers
    fit = max((n for n in range(1, layers) if bytes_to_move(shapes, stays_here(n)) <= room), default=0)
    hints = [f"--gpu-layers {fit} leaves {layers - fit} of {layers} layers to the processor"] if fit else []
    hints += ["--dtype int4 takes a quarter of bf16"] if format not in QUANTISED else []
    require(needed, f"what of the model goes to the GPU in {format}", ", or ".join(hints) or "take --backend cpu", room)
