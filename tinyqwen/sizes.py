"""The published Qwen2 and Qwen2.5 models: their shapes, and where public pages contradict the checkpoints.

`--size 0.5B` means Qwen/Qwen2-0.5B-Instruct; `--size 2.5-0.5B` means Qwen/Qwen2.5-0.5B-Instruct; `--base` the
pretrained model without chat training. Values are those of the config.json files on Hugging Face.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyqwen.config import Config
from tinyqwen.errors import UsageError

ENDOFTEXT, IM_END = 151643, 151645


@dataclass(frozen=True)
class Size:
    """One published size: the numbers of config.json that differ between sizes.

    layers, hidden, intermediate, heads, groups, vocab, tied    as in config.json
    base_context       max_position_embeddings of the base model; the instruct models say 32768
    base_eps           rms_norm_eps of the base model; the instruct models say 1e-6
    experts            the keys of the mixture of experts, or nothing
    licence            of the weights, as published
    """

    family: str
    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    groups: int
    vocab: int
    tied: bool
    base_context: int = 131072
    base_eps: float = 1e-6
    experts: tuple[tuple[str, Any], ...] = ()
    licence: str = "Apache-2.0"

    def config(self, base: bool = False) -> Config:
        """The config of the instruct model, or of the base model."""
        return Config(
            model_type="qwen2_moe" if self.experts else "qwen2",
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.base_context if base else 32768,
            rms_norm_eps=self.base_eps if base else 1e-6,
            rope_theta=1000000.0,
            eos_token_id=(ENDOFTEXT if base else IM_END,),
            torch_dtype="bfloat16",
            **dict(self.experts),
        )

    def hub_id(self, base: bool = False) -> str:
        """The repository on the Hugging Face hub.

        >>> SIZES["2.5-3B"].hub_id(), SIZES["72B"].hub_id(base=True)
        ('Qwen/Qwen2.5-3B-Instruct', 'Qwen/Qwen2-72B')
        """
        return f"Qwen/{self.family}-{self.name}{'' if base else '-Instruct'}"


A14B = (
    ("num_experts", 64), ("num_experts_per_tok", 8), ("moe_intermediate_size", 2560),
    ("shared_expert_intermediate_size", 20480),
)  # fmt: skip

SIZES: dict[str, Size] = {
    ("" if size.family == "Qwen2" else "2.5-") + size.name: size
    for size in (
        #    family     name        L   D     F      H   G  V       tied
        Size("Qwen2", "0.5B", 24, 896, 4864, 14, 2, 151936, True),
        Size("Qwen2", "1.5B", 28, 1536, 8960, 12, 2, 151936, True),
        Size("Qwen2", "7B", 28, 3584, 18944, 28, 4, 152064, False),
        Size("Qwen2", "57B-A14B", 28, 3584, 18944, 28, 4, 151936, False, experts=A14B),
        Size("Qwen2", "72B", 80, 8192, 29568, 64, 8, 152064, False, base_eps=1e-5, licence="Qwen"),
        Size("Qwen2.5", "0.5B", 24, 896, 4864, 14, 2, 151936, True, base_context=32768),
        Size("Qwen2.5", "1.5B", 28, 1536, 8960, 12, 2, 151936, True),
        Size("Qwen2.5", "3B", 36, 2048, 11008, 16, 2, 151936, True, base_context=32768, licence="Qwen research"),
        Size("Qwen2.5", "7B", 28, 3584, 18944, 28, 4, 152064, False),
        Size("Qwen2.5", "14B", 48, 5120, 13824, 40, 8, 152064, False, base_eps=1e-5),
        Size("Qwen2.5", "32B", 64, 5120, 27648, 40, 8, 152064, False, base_eps=1e-5),
        Size("Qwen2.5", "72B", 80, 8192, 29568, 64, 8, 152064, False, base_eps=1e-5, licence="Qwen"),
    )
}


def size_named(name: str) -> Size:
    """The published size of that name. Errors: UsageError lists the names.

    >>> size_named("57B-A14B").layers
    28
    """
    if name not in SIZES:
        raise UsageError(f"no size {name!r}; there are {', '.join(SIZES)}")
    return SIZES[name]


# Claims of secondary pages that the checkpoints contradict. The evidence is file sizes, hashes and parameter counts.
CONTRADICTIONS: dict[str, tuple[str, ...]] = {
    "0.5B": ("some pages say 16 query and 8 KV heads; the checkpoint has 14 and 2, which alone fits its size",),
    "1.5B": ("some pages say 24 layers; the checkpoint has 28, which alone gives 1.54 B parameters",),
    "7B": (
        "some pages say 32 layers and 64 heads; the checkpoint has 28 layers, 28 query and 4 KV heads",
        "a table in the release post is quoted with 7.07 B / 5.98 B parameters; the shards hold 7.62 B / 6.53 B",
    ),
    "57B-A14B": (
        "the report lists 8 shared experts of width 2560; the checkpoint has one of width 20480 with one sigmoid gate "
        "(the same mathematics)",
        "intermediate_size 18944 is in the config but unused: all 28 layers are sparse, with experts of width 2560",
        "the model card's snippet says vocab_size 152064; the checkpoint has 151936 rows",
    ),
    "72B": ("rms_norm_eps is 1e-5 in the base model and 1e-6 in the instruct model, not one value for both",),
    "2.5-3B": ("some pages say 48 heads and hidden size 2304; the checkpoint has 16 heads and 2048",),
    "*": (
        "vocab_size counts table rows (151936 or 152064), not tokens: Qwen2 has 151,646, Qwen2.5 151,665",
        "max_position_embeddings is not the advertised context: base models say 131072 (2.5-0.5B and 2.5-3B 32768), "
        "instruct models 32768",
        "q, k and v have biases, o_proj and the feed-forward part have none",
    ),
}  # fmt: skip
