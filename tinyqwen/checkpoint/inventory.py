"""The strict inventory: exactly the tensors that the config asks for, each once, each in its shape.

A tensor that is missing, left over or of another shape means a model that runs and is subtly wrong (a forgotten bias, a
config of another size), so all of them are named at once, before a byte of weights is read. Five ways in which honest
files differ from `tensor_shapes` are accepted:

    tied, head stored too       published re-saves do so; whether the two agree is checked when loading
    tied, head stored alone     it is the embedding under its other name
    fused experts               transformers 5 keeps experts in two 3-D tensors in memory, and may save them like that
    rotary_emb.inv_freq         a buffer that old releases of transformers saved; computed from rope_theta, so ignored
    bf16, f16, f32              any of them, tensor by tensor

Where config.json says that the weights are quantised, the tensors are those of `quantised_file.py`, exactly.
"""

from __future__ import annotations

from pathlib import Path

from tinyqwen.checkpoint.quantised_file import quantised_entries
from tinyqwen.checkpoint.safetensors_file import FLOATS, Stored
from tinyqwen.config import Config
from tinyqwen.errors import ModelFilesError
from tinyqwen.weights import Shapes, tensor_shapes

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def take_inventory(
    config: Config, files: dict[Path, dict[str, Stored]], index: dict[str, str] | None, source: Path
) -> dict[str, Stored]:
    """All tensors of a checkpoint by name, if they are exactly those of the config.

    files    per file, what its header says
    index    tensor name -> file name, of a sharded checkpoint
    source   the file to name in the error: the single file, or the index

    Errors: ModelFilesError with up to five names of each kind of problem, and how many there are.
    """
    found: dict[str, Stored] = {}
    duplicate, unlisted = [], []
    for path, tensors in files.items():
        for name, stored in tensors.items():
            if name.endswith(".rotary_emb.inv_freq"):
                continue
            if name in found:
                duplicate.append(f"{show(name)} in {found[name].path.name} and {path.name}")
            elif index is not None and index.get(name) != path.name:
                unlisted.append(f"{show(name)} in {path.name}")
            found.setdefault(name, stored)
    absent = [
        f"{show(name)} in {file}"
        for name, file in (index or {}).items()
        if name not in files[source.parent / file]
    ]  # fmt: skip

    if config.quantization_config:
        entries = quantised_entries(config)
        expected = {name: shape for name, (_, shape) in entries.items()}
        types = {name: (code,) if code else tuple(FLOATS) for name, (code, _) in entries.items()}
    else:
        if config.tie_word_embeddings and HEAD in found and TABLE not in found:
            found[TABLE] = found.pop(HEAD)
        expected, types = expected_shapes(config, found), {}

    missing = [show(name) for name in expected if name not in found]
    if HEAD in expected and HEAD not in found:
        missing[missing.index(HEAD)] = f"{HEAD} (config.json says tie_word_embeddings is false, so it must be stored)"
    problems = {
        "missing": missing,
        "unexpected": [f"{show(name)} in {found[name].path.name}" for name in found if name not in expected],
        "stored twice": duplicate,
        "of wrong shape": [
            f"{show(name)} is {list(found[name].shape)}, must be {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ],
        f"of a type other than {', '.join(FLOATS)}": [
            f"{show(name)} is {stored.dtype}"
            for name, stored in found.items()
            if name not in types and stored.dtype not in FLOATS
        ],
        "of wrong type": [
            f"{show(name)} is {found[name].dtype}, must be {' or '.join(allowed)}"
            for name, allowed in types.items()
            if name in found and found[name].dtype not in allowed
        ],
        "listed in the index but not stored": absent,
        "stored but not listed in the index": unlisted,
    }
    if any(problems.values()):
        said = "; ".join(f"{len(names)} {kind}: {first_five(names)}" for kind, names in problems.items() if names)
        raise ModelFilesError(
            f"{source}: the tensors do not fit config.json: {said}; check that config.json and the weights belong "
            "together, or download them again"
        )
    return found


def expected_shapes(config: Config, found: dict[str, Stored]) -> Shapes:
    """The tensors to expect, in the spelling of those found: a stored head of a tied model, and fused experts."""
    shapes = tensor_shapes(config)
    if config.tie_word_embeddings and HEAD in found:
        shapes[HEAD] = shapes[TABLE]
    for layer in range(config.num_hidden_layers):
        for name, parts in fused_experts(config, layer).items():
            if name in found:
                members = [shapes.pop(f"model.layers.{layer}.mlp.experts.{member}.weight") for member in parts]
                rows = sum(rows for rows, _ in members) // config.num_experts
                shapes[name] = (config.num_experts, rows, members[0][1])
    return shapes


def fused_experts(config: Config, layer: int) -> dict[str, list[str]]:
    """The fused tensors of a layer, and the experts' matrices they hold: first by expert, then top to bottom.

    >>> config = Config(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9,
    ...                 model_type="qwen2_moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=6)
    >>> fused_experts(config, 0)["model.layers.0.mlp.experts.gate_up_proj"]
    ['0.gate_proj', '0.up_proj', '1.gate_proj', '1.up_proj']
    """
    if not config.is_sparse(layer):
        return {}
    at, experts = f"model.layers.{layer}.mlp.experts", range(config.num_experts)
    return {
        f"{at}.gate_up_proj": [f"{expert}.{name}" for expert in experts for name in ("gate_proj", "up_proj")],
        f"{at}.down_proj": [f"{expert}.down_proj" for expert in experts],
    }


def split_experts(config: Config, inventory: dict[str, Stored]) -> dict[str, Stored]:
    """The inventory with fused experts taken apart: one matrix per expert and name, each at its place in the file."""
    inventory = dict(inventory)
    for layer in range(config.num_hidden_layers):
        for name, parts in fused_experts(config, layer).items():
            if name not in inventory:
                continue
            fused = inventory.pop(name)  # [E, 2M, D] or [E, D, M]
            rows, columns = fused.shape[0] * fused.shape[1] // len(parts), fused.shape[2]
            for number, part in enumerate(parts):
                offset = fused.offset + number * fused.nbytes // len(parts)
                matrix = fused._replace(shape=(rows, columns), offset=offset)
                inventory[f"model.layers.{layer}.mlp.experts.{part}.weight"] = matrix
    return inventory


def show(name: str) -> str:
    """A name out of a file, safe to print: control characters are escaped, and nobody's name fills the screen."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def first_five(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
