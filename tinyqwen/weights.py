"""The parameters: which tensors a config asks for, and the tree that the model reads them from.

The tree's attribute path is the checkpoint's key, without the leading `model.`:

    model.layers.3.self_attn.q_proj.weight   ->   weights.layers[3].self_attn.q_proj.weight

Linear weights are stored as Hugging Face stores them, [outputs, inputs]. Only q, k and v have biases.
A tied head is the embedding table under a second name, not a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinyqwen.config import Config

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: Config) -> Shapes:
    """Every tensor of that model's checkpoint and its shape, in module order.

    >>> from tinyqwen.sizes import SIZES
    >>> shapes = tensor_shapes(SIZES["0.5B"].config())
    >>> len(shapes), shapes["model.layers.0.self_attn.k_proj.weight"]
    (290, (128, 896))
    """
    D, V, K = config.hidden_size, config.vocab_size, config.head_dim
    HK, GK = config.num_attention_heads * K, config.num_key_value_heads * K
    shapes: Shapes = {"model.embed_tokens.weight": (V, D)}

    def mlp(prefix: str, width: int):
        shapes[f"{prefix}.gate_proj.weight"] = (width, D)
        shapes[f"{prefix}.up_proj.weight"] = (width, D)
        shapes[f"{prefix}.down_proj.weight"] = (D, width)

    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        for name, width in (("q_proj", HK), ("k_proj", GK), ("v_proj", GK)):
            shapes[f"{at}.self_attn.{name}.weight"] = (width, D)
            if config.qkv_bias:
                shapes[f"{at}.self_attn.{name}.bias"] = (width,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (D, HK)
        if config.is_sparse(layer):
            shapes[f"{at}.mlp.gate.weight"] = (config.num_experts, D)
            for expert in range(config.num_experts):
                mlp(f"{at}.mlp.experts.{expert}", config.moe_intermediate_size)
            mlp(f"{at}.mlp.shared_expert", config.shared_expert_intermediate_size)
            shapes[f"{at}.mlp.shared_expert_gate.weight"] = (1, D)
        else:
            mlp(f"{at}.mlp", config.intermediate_size)
        shapes[f"{at}.input_layernorm.weight"] = (D,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (D,)
    shapes["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters as the model cards count them: total, non_embedding, and active for one token.

    Active leaves out the experts that a token is not routed to; it counts both tables, as the cards do.

    >>> from tinyqwen.sizes import SIZES
    >>> count_parameters(SIZES["0.5B"].config())
    {'total': 494032768, 'non_embedding': 357898112, 'active': 494032768}
    """
    counts = {name: math.prod(shape) for name, shape in tensor_shapes(config).items()}
    total = sum(counts.values())
    tables = sum(count for name, count in counts.items() if name.startswith(("model.embed_tokens", "lm_head")))
    routed = sum(count for name, count in counts.items() if ".experts." in name)
    idle = routed - routed * config.num_experts_per_tok // max(config.num_experts, 1)
    return {"total": total, "non_embedding": total - tables, "active": total - idle}


class Node(SimpleNamespace):
    """A place in the tree. Its attributes are arrays (or quantised matrices), nodes and lists of nodes."""

    def __repr__(self):
        return f"Node({', '.join(vars(self))})"


def tree(tensors: Mapping[str, Any]) -> Node:
    """The tree of these named tensors. Without `lm_head.weight` the head is the embedding.

    >>> weights = tree({"model.embed_tokens.weight": "table", "model.layers.0.mlp.up_proj.weight": "matrix"})
    >>> weights.layers[0].mlp.up_proj.weight, weights.lm_head is weights.embed_tokens
    ('matrix', True)
    """
    nested: dict = {}
    for name, tensor in tensors.items():
        *parents, leaf = name.removeprefix("model.").split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[leaf] = tensor

    def grow(place):
        if not isinstance(place, dict):
            return place
        if all(part.isdigit() for part in place):
            return [grow(place[str(index)]) for index in range(len(place))]
        return Node(**{part: grow(branch) for part, branch in place.items()})

    root: Any = grow(nested)
    if not hasattr(root, "lm_head"):
        root.lm_head = root.embed_tokens
    return root


def walk(weights: Node, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node and array below, with its path; the root's own path is empty.

    >>> weights = tree({"model.embed_tokens.weight": "table", "model.layers.0.input_layernorm.weight": "vector"})
    >>> [path for path, _ in walk(weights)][3:]
    ['layers.0', 'layers.0.input_layernorm', 'layers.0.input_layernorm.weight']
    """
    if isinstance(weights, list):
        for index, item in enumerate(weights):
            yield from walk(item, f"{path}.{index}")
        return
    yield path, weights
    if isinstance(weights, Node):
        for name, branch in vars(weights).items():
            if name == "lm_head" and branch is weights.embed_tokens:
                continue  # a tied head is seen once, under its first name
            yield from walk(branch, f"{path}.{name}".lstrip("."))


def tensors_of(weights: Node, names: Iterable[str]) -> dict[str, Any]:
    """The arrays of a tree under their checkpoint's names: what `tree` was made of.

    >>> tensors = {"model.embed_tokens.weight": "table", "model.layers.0.mlp.up_proj.weight": "matrix"}
    >>> tensors_of(tree(tensors), tensors) == tensors
    True
    """
    found = dict(walk(weights))
    return {name: found[name.removeprefix("model.")] for name in names}


def names_of(weights: Node) -> dict:
    """What wrappers call the model's arrays and nodes, by id; see `backends.places`.

    >>> weights = tree({"model.embed_tokens.weight": np.ones((2, 2)), "model.norm.weight": np.ones(2)})
    >>> names_of(weights)[id(weights.norm.weight)], names_of(weights)["linear", id(weights.lm_head.weight)]
    ('norm.weight', 'lm_head.weight')
    """
    names: dict = {id(place): path for path, place in walk(weights) if path}
    names["linear", id(weights.lm_head.weight)] = "lm_head.weight"  # a tied head is the embedding in another part
    return names


def random_weights(config: Config, seed: int = 0, scale: float = 0.02) -> dict[str, np.ndarray]:
    """Tensors of the right shapes with random values, biases too: for tests, benchmarks and lessons.

    Norm weights lie around 1, all others around 0 with that standard deviation.
    """
    rng = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise *= scale if len(shape) > 1 else 0.2  # biases and norms must matter, or a test could not see them
        if "norm" in name:
            noise += 1
        return noise

    return fill(config, values)


def fill(config: Config, make: Callable[[str, tuple[int, ...]], np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of that config, each made from its name and shape; `shape_only` makes a model without data."""
    return {name: make(name, shape) for name, shape in tensor_shapes(config).items()}
