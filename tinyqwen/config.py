"""config.json: the numbers that make one Qwen2 model different from another.

Fields carry the names of Hugging Face's config.json. In the code, arrays end in the letters of their axes; a test runs
the model and proves every suffix true:

    T  tokens of this call        D  hidden_size               E  num_experts
    S  keys visible               F  intermediate_size         A  num_experts_per_tok
    H  num_attention_heads        V  vocab_size                M  moe_intermediate_size
    G  num_key_value_heads        L  num_hidden_layers         N  any count, said where it is used
    R  H / G, heads per KV head   K  head_dim, Kh = K / 2      I, O  inputs and outputs of a linear layer

A lower-case letter belongs to the capital before it: `cos_TKh` has two axes, T and Kh.

`config_json.py` reads and checks the file itself; `sizes.py` holds the published models.

Source: transformers, models/qwen2/configuration_qwen2.py and models/qwen2_moe/configuration_qwen2_moe.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

FULL, SLIDING = "full_attention", "sliding_attention"


class Quantization(NamedTuple):
    """How the files' weights are quantised; the words are those of `tinyqwen.formats`.

    format   int8 or int4
    tables   int4's embedding and head: int8 or int4
    """

    format: str
    tables: str = "int8"


class DualChunk(NamedTuple):
    """Dual Chunk Attention, see `tinyqwen.blocks.dual_chunk`.

    chunk_size                         the longest distance that a query sees, in tokens: known from training
    local_size                         how far back distances stay true across the edge of a chunk
    original_max_position_embeddings   texts longer than this get a temperature; 0: none does
    """

    chunk_size: int
    local_size: int
    original_max_position_embeddings: int = 0

    @property
    def chunk_len(self) -> int:
        """L: every so many tokens a chunk begins."""
        return self.chunk_size - self.local_size


class RopeScaling(NamedTuple):
    """YaRN: how a model is run at `factor` times its trained context. `tinyqwen.blocks.yarn` says what the numbers do.

    original_max_position_embeddings   the trained context, in tokens
    attention_factor                   the size of queries and keys; None: by the formula
    beta_fast, beta_slow               pairs that turn more often than beta_fast within the trained context are left
                                       alone, those that turn less often than beta_slow are slowed down by the factor
    mscale, mscale_all_dim             weights in the formula of attention_factor; both or none
    truncate                           round the pairs where that begins and ends to whole ones
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Config:
    """The shape of a model and the constants of its formulas, in config.json's own words.

    >>> config = Config(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    ...                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, rope_theta=1e6)
    >>> config.head_dim, config.layer_types[0], config.is_sparse(0)
    (64, 'full_attention', False)
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int = 0  # 0 means as many as query heads
    head_dim: int = 0  # 0 means hidden_size / num_attention_heads; published files do not have the key
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0  # the default of the format; every published model sets 1000000
    rope_scaling: RopeScaling | None = None  # published files do not have it: who wants long texts adds it
    tie_word_embeddings: bool = False
    qkv_bias: bool = True
    sliding_window: int | None = None  # the window in use: None unless use_sliding_window is true
    layer_types: tuple[str, ...] = ()  # empty means full attention in every layer
    dual_chunk_attention_config: DualChunk | None = None

    # mixture of experts; num_experts 0 is a dense model
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    # no part in the forward pass
    model_type: str = "qwen2"
    eos_token_id: tuple[int, ...] = ()
    torch_dtype: str = "float32"
    quantization_config: Quantization | None = None
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    router_aux_loss_coef: float = 0.001

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  (frozen: set once, here)
        if not self.num_key_value_heads:
            fill("num_key_value_heads", self.num_attention_heads)
        if not self.head_dim:
            fill("head_dim", self.hidden_size // self.num_attention_heads)
        if not self.layer_types:
            fill("layer_types", (FULL,) * self.num_hidden_layers)

    def is_sparse(self, layer: int) -> bool:
        """Whether that layer's feed-forward part is a mixture of experts."""
        at_step = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and at_step and layer not in self.mlp_only_layers

    def window(self, layer: int) -> int | None:
        """How many keys a query of that layer sees, itself included; None means all before it."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    @property
    def trained_context(self) -> int:
        """How many tokens the model can look at without YaRN or chunks."""
        scaling = self.rope_scaling
        return scaling.original_max_position_embeddings if scaling else self.max_position_embeddings

    @property
    def context(self) -> int:
        """How many tokens the model can look at, prompt and answer together."""
        if self.dual_chunk_attention_config:  # no distance ends it; four times the longest one is what was published
            return max(self.max_position_embeddings, 4 * self.dual_chunk_attention_config.chunk_size)
        return int(self.trained_context * (self.rope_scaling.factor if self.rope_scaling else 1))

    def with_yarn(self, factor: float) -> Config:
        """This model at that many times its trained context.

        >>> config = Config(8, 16, 1, 2, 9, max_position_embeddings=32768).with_yarn(4)
        >>> config.context, config.with_yarn(2).context             # from the trained context, not from 131072
        (131072, 65536)
        """
        return replace(self, rope_scaling=RopeScaling(factor, self.trained_context))

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache keeps of one token: a key and a value per layer and KV head."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @property
    def letters(self) -> dict[str, int]:
        """The size behind each axis letter that the config fixes."""
        sizes = {
            "D": self.hidden_size, "H": self.num_attention_heads, "G": self.num_key_value_heads,
            "R": self.num_attention_heads // self.num_key_value_heads, "K": self.head_dim, "Kh": self.head_dim // 2,
            "F": self.intermediate_size, "V": self.vocab_size, "L": self.num_hidden_layers,
            "E": self.num_experts, "A": self.num_experts_per_tok, "M": self.moe_intermediate_size,
        }  # fmt: skip
        return {letter: size for letter, size in sizes.items() if size}
