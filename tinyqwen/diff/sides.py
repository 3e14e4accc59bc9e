"""The sides of a comparison: something that runs given tokens step by step and shows every result on the way.

A model on one of our backends, what transformers computed once (goldens), or what it computes now.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import backends
from backends.interface import Backend, Operation, host
from backends.packed import Packed
from backends.places import Places
from backends.quantised import Quantised
from tinyqwen.checkpoint.upload import upload
from tinyqwen.config import FULL, SLIDING, Config
from tinyqwen.config_json import parse_config, written_scaling
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.kv_cache import KVCache
from tinyqwen.memory import require
from tinyqwen.model import forward
from tinyqwen.sizes import SIZES
from tinyqwen.step import make_step
from tinyqwen.weights import Node, count_parameters, names_of, random_weights, tree, walk

See = Callable[[str, np.ndarray], None]


class Side(Protocol):
    """One of the two ways of running the model."""

    name: str

    def start(self) -> None:
        """Forget all tokens."""

    def step(self, ids: list[int], see: See) -> np.ndarray:
        """Run the next ids. Returns the greedy choice after each of them; none where the side does not know."""


@dataclass
class Model:
    """A side that runs this project's model on a backend.

    >>> config, weights = random_model("tiny")
    >>> side = Model("numpy", backends.get("numpy"), config, weights)
    >>> paths = []
    >>> side.start(); side.step([1, 2, 3], lambda path, array: paths.append(path)).shape
    (3,)
    >>> paths[:4]
    ['embed_tokens', 'rope_tables[0]', 'rope_tables[1]', 'layers.0.input_layernorm']
    """

    name: str
    backend: Backend
    config: Config
    weights: Node

    def start(self) -> None:
        self.cache = KVCache(self.backend, self.config)

    def step(self, ids: list[int], see: See) -> np.ndarray:
        seeing = Seeing(self.backend, names_of(self.weights), see)
        logits_TV = forward(seeing, self.config, self.weights, make_step([(ids, self.cache)], all_logits=True))
        return host(logits_TV).argmax(axis=-1)

    @property
    def knows_float64(self) -> bool:
        return np.float64 in self.backend.dtypes

    def in_float64(self, weights: Node | None = None) -> Model:
        """The same with activations in float64, perhaps on other weights. float32 weights are widened where they are
        used, a matrix at a time, which is exact and costs time instead of twice the memory."""
        backend = copy.copy(self.backend)
        backend.dtype = np.dtype(np.float64)
        if weights is None:
            weights = self.weights
        else:
            weights = each_array(weights, lambda array: device(backend, host(array)))
        return replace(self, name=f"{self.name} in float64", backend=backend, weights=weights)

    def textbook(self, dtype) -> Model:
        """The definitions themselves on the same weights, whatever the backend."""
        weights = each_array(self.weights, here)
        return replace(self, name="the definitions", backend=Backend(np, dtype=dtype), weights=weights)


class Seeing(Places):
    """A wrapper that shows every operation's results as they come, each with its place.

    Operations show when they finish, inner ones first: the first result that is wrong belongs to the innermost
    operation that made it. Several results are `path[0]`, `path[1]`; the second of a path in a step is `path#2`.
    """

    def __init__(self, inner: Backend, names, see: See):
        super().__init__(inner, names)
        self.see = see
        self.times: Counter = Counter()

    def run(self, operation: Operation, arrays: tuple, settings: dict, door: Backend | None = None):
        path = self.place(operation, arrays)
        self.inside.append(path)
        out = super().run(operation, arrays, settings, door)
        self.inside.pop()
        self.times[path] += 1
        name = path if self.times[path] == 1 else f"{path}#{self.times[path]}"
        results = flat(out)
        for number, result in enumerate(results):
            self.see(f"{name}[{number}]" if len(results) > 1 else name, host(result))
        return out


def flat(out) -> list:
    """All arrays of nested tuples and lists.

    >>> flat(([1, 2], [3]))
    [1, 2, 3]
    """
    return [array for item in out for array in flat(item)] if isinstance(out, (tuple, list)) else [out]


def here(weight):
    """A weight in this machine's memory, quantised or not."""
    if isinstance(weight, Quantised):
        return Quantised(weight.bits, weight.shape, host(weight.values), host(weight.scales))
    return host(weight)


def device(backend: Backend, array):
    """The array in the backend's memory. A quantised or packed matrix stays as it is."""
    return array if isinstance(array, (Quantised, Packed)) else backend.xp.asarray(array)


class Golden:
    """A side that was computed before: the outputs of layers and the logits of one prompt, and the text after it."""

    def __init__(self, path: Path | str):
        self.name = f"goldens:{path}"
        try:
            with np.load(path, allow_pickle=False) as file:
                held = dict(file)
            self.config = parse_config(json.loads(str(held["config"])))
            self.ids = held["ids"].tolist()
            self.hidden_LTD, self.logits_TV, self.greedy_T = held["hidden"], held["logits"], held["greedy"]
        except OSError as error:
            if error.strerror:
                raise UsageError(f"goldens {path}: {error.strerror}") from None
            raise ModelFilesError(f"{path}: is not a golden file; tests/goldens has some") from None
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile):
            raise ModelFilesError(f"{path}: is not a golden file; tests/goldens has some") from None
        tensors = {key.removeprefix("tensor:"): value for key, value in held.items() if key.startswith("tensor:")}
        self.weights = tree(tensors)

    def start(self) -> None:
        self.past: list[int] = []

    def step(self, ids: list[int], see: See) -> np.ndarray:
        start, self.past = len(self.past), self.past + ids
        known = [*self.ids, *self.greedy_T.tolist()]
        if self.past != known[: len(self.past)]:
            return np.array([], int)  # another text than the one it knows
        rows = slice(start, len(self.past))
        if start < len(self.ids):
            show_hidden(self.hidden_LTD[:, rows], see)
            see("lm_head", self.logits_TV[rows])
            return self.logits_TV[rows].argmax(axis=-1)
        return np.array(known[start + 1 : len(self.past) + 1], int)


def show_hidden(hidden_LTD, see: See) -> None:
    """What transformers gives as hidden states: embedding, each layer's output, the last one behind the final norm."""
    last = len(hidden_LTD) - 1
    for number, hidden_TD in enumerate(hidden_LTD):
        see("embed_tokens" if number == 0 else "norm" if number == last else f"layers.{number - 1}", hidden_TD)


class Transformers:
    """A side that is transformers itself, in float32 with eager attention, through its own cache.

    Its RMSNorm and rotary angles are float32 whatever the model's type, so there is no float64 of it.

    config   how to run it: as the folder's config.json says, or with another YaRN. Dual Chunk Attention it has not
    """

    name = "transformers"

    def __init__(self, folder: Path | str, config: Config):
        if config.dual_chunk_attention_config:
            raise UsageError("transformers has no Dual Chunk Attention; compare with another side, or without it")
        try:
            import torch
            import transformers
        except ImportError:
            raise UsageError(
                "the side transformers needs torch and transformers: pip install 'tinyqwen[oracle]'"
            ) from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch: Any = torch
        theirs = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        scaling = config.rope_scaling
        if scaling and theirs.rope_parameters.get("factor") != scaling.factor:  # asked for by --yarn
            theirs.rope_parameters = {**theirs.rope_parameters, "rope_type": "yarn", **written_scaling(scaling)}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=theirs, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
            local_files_only=True,
        ).eval()  # fmt: skip

    def start(self) -> None:
        self.past: Any = None

    def step(self, ids: list[int], see: See) -> np.ndarray:
        with self.torch.no_grad():
            out = self.model(self.torch.tensor([ids]), cache=self.past, use_cache=True, output_hidden_states=True)
        self.past = out.cache
        show_hidden([hidden[0].numpy() for hidden in out.hidden_states], see)
        logits_TV = out.logits[0].numpy()
        see("lm_head", logits_TV)
        return logits_TV.argmax(axis=-1)


def make_side(name: str, config: Config, weights: Node, folder: Path | None = None) -> Side:
    """The side of that name, see above. `folder` is where the weights came from.

    Errors: UsageError says which names there are, or what is missing.

    >>> make_side("numpy:float64", *random_model("tiny")).backend.dtype
    dtype('float64')
    """
    if name.startswith("goldens:"):
        return Golden(name.removeprefix("goldens:"))
    if name == "transformers":
        if folder is None:
            raise UsageError("the side transformers reads a model folder; name one with --model or --size")
        return Transformers(folder, config)
    of, _, variant = name.partition(":")
    known = *backends.NAMES, *backends.DEVICES
    if backends.ALIASES.get(of, of) not in known or variant not in ("", "float64", "bf16-weights"):
        of_backends = ", ".join(f"{each}, {each}:float64, {each}:bf16-weights" for each in known)
        raise UsageError(f"no side {name!r}; there are {of_backends}, goldens:FILE and transformers")
    try:
        backend = backends.get(of)
    except ValueError as error:  # no GPU
        raise UsageError(str(error)) from None
    if variant == "float64" and np.float64 not in backend.dtypes:
        raise UsageError(f"the kernels of the {of} backend are for float32; numpy:float64 runs the definitions")
    if variant == "bf16-weights":
        parameters = count_parameters(config)["total"]
        require(4 * parameters, "a second copy of the weights", "take a smaller model")
        weights = each_array(weights, rounded_to_bf16)
    weights = upload(backend, weights) if backend.name == "cuda" else weights
    side = Model(name, backend, config, weights)
    return replace(side.in_float64(), name=name) if variant == "float64" else side


def each_array(weights: Node, change: Callable) -> Node:
    """The same tree with each array changed. A tied head stays tied.

    >>> weights = tree({"embed_tokens.weight": np.ones(2), "layers.0.norm.weight": np.ones(2)})
    >>> double = each_array(weights, lambda array: 2 * array)
    >>> double.layers[0].norm.weight, double.lm_head is double.embed_tokens
    (array([2., 2.]), True)
    """
    return tree({path: change(array) for path, array in walk(weights) if not isinstance(array, Node)})


def rounded_to_bf16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, as float32: 8 significant bits are left, the range stays.

    Published checkpoints are bfloat16 already: their arrays come back as they are, without a copy. Quantised matrices
    are not: 8 bits times a bfloat16 have 16.

    >>> rounded_to_bf16(np.float32([1, 257])).tolist()
    [1.0, 256.0]
    """
    import ml_dtypes

    if array.dtype == ml_dtypes.bfloat16:
        return array
    array = array.astype(np.float32, copy=False)
    rounded = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    return array if np.array_equal(rounded, array) else rounded


def random_model(size: str) -> tuple[Config, Node]:
    """A model with random weights: a published size, or `tiny`, which has every kind of layer and runs in milliseconds.

    tiny: five layers; 1 and 3 are mixtures of experts; the odd ones see the last four tokens only. Its embedding is as
    small as that of trained models (0.02), so that eps matters; the other weights are large, so that attention and
    routers choose instead of averaging.

    >>> config, weights = random_model("tiny")
    >>> [config.window(layer) for layer in range(5)], [config.is_sparse(layer) for layer in range(5)]
    ([None, 4, None, 4, None], [False, True, False, True, False])
    """
    if size != "tiny":
        if size not in SIZES:
            raise UsageError(f"no size {size!r}; there are tiny, {', '.join(SIZES)}")
        config = SIZES[size].config()
        require(4 * count_parameters(config)["total"], f"random weights of the {size}", "take a smaller size")
        return config, tree(random_weights(config))
    config = Config(
        model_type="qwen2_moe", hidden_size=20, intermediate_size=28, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=2, head_dim=10, vocab_size=97, sliding_window=4,
        layer_types=(FULL, SLIDING, FULL, SLIDING, FULL), num_experts=9, num_experts_per_tok=4,
        moe_intermediate_size=13, shared_expert_intermediate_size=17, decoder_sparse_step=2, mlp_only_layers=(),
    )  # fmt: skip
    tensors = random_weights(config, seed=1, scale=0.3)
    tensors["model.embed_tokens.weight"] *= np.float32(0.02 / 0.3)
    return config, tree(tensors)
