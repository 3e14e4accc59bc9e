"""The same model in transformers: what the oracle tests and the goldens compare with.

torch and transformers are imported inside the functions, so that this file can be collected without them.
"""

from __future__ import annotations

import json

import numpy as np

from tests.helpers import CONFIGS, dense_config, moe_config
from tinyqwen.config import FULL, SLIDING, Config
from tinyqwen.config_json import to_json
from tinyqwen.weights import random_weights

# Every kind of layer, with a seed whose 64 greedy tokens vary and have no near ties: the best logit leads the second by
# GAP at least, a hundred times what float32 noise can do. `test_greedy_text_is_equal` checks that it does.
CASES: dict[str, tuple[Config, int]] = {
    "dense": (CONFIGS["dense"], 1),
    "tied": (CONFIGS["tied"], 5),
    "window": (CONFIGS["window"], 3),
    "yarn": (CONFIGS["yarn"], 8),
    "heads-14-2": (dense_config(hidden_size=28, num_attention_heads=14, head_dim=4, num_hidden_layers=2), 1),
    "heads-12-2-tied": (
        dense_config(hidden_size=32, num_attention_heads=12, head_dim=8, num_hidden_layers=2, tie_word_embeddings=True),
        2,
    ),
    "moe": (CONFIGS["moe"], 6),
    "moe-normalised": (CONFIGS["moe-normalised"], 1),
    "moe-window": (moe_config(sliding_window=5, layer_types=(SLIDING, FULL) * 2), 6),
}
GAP = 1e-3


def transformers_model(config: Config, tensors: dict[str, np.ndarray]):
    """transformers' model of that config with these very tensors, in float32 with eager attention."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    sparse = config.num_experts > 0
    theirs = (Qwen2MoeConfig if sparse else Qwen2Config)(**json.loads(to_json(config)), attn_implementation="eager")
    theirs._experts_implementation = "eager"  # the fused one wants sizes that are multiples of 4
    theirs.dtype = torch.float32
    model = (Qwen2MoeForCausalLM if sparse else Qwen2ForCausalLM)(theirs).eval()
    state = {name: torch.from_numpy(tensor) for name, tensor in fused_experts(config, tensors).items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    return model


def transformers_folder(folder):
    """transformers' model of that checkpoint folder, widened to float32, with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def fused_experts(config: Config, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers 5 holds a layer's experts as two 3-D tensors; the files, and tinyqwen, hold them one by one."""
    out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(config.num_hidden_layers):
        if config.is_sparse(layer):
            at = f"model.layers.{layer}.mlp.experts"
            each = [[tensors[f"{at}.{e}.{name}_proj.weight"] for name in ("gate", "up", "down")]
                    for e in range(config.num_experts)]  # fmt: skip
            out[f"{at}.gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in each])
            out[f"{at}.down_proj"] = np.stack([down for _, _, down in each])
    return out


def transformers_outputs(model, ids: list[int], new_tokens: int = 0) -> dict[str, np.ndarray]:
    """Hidden states, logits and, if asked for, the greedy text with the smallest gap between the best two logits.

    hidden   the embedding, each layer's output but the last one's, and the last one's behind the final norm
    """
    import torch

    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
        found = {"hidden": torch.cat(out.hidden_states).numpy(), "logits": out.logits[0].numpy()}
        if new_tokens:
            text = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                repetition_penalty=1.0, max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
                pad_token_id=0, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            best_two = torch.cat(text.logits).topk(2).values
            found["greedy"] = text.sequences[0, len(ids) :].numpy()
            found["gap"] = (best_two[:, 0] - best_two[:, 1]).min().numpy()
    return found


def sharp_weights(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Random weights with biases that are not 0 and norms that are not 1, and attention and routers that choose."""
    return random_weights(config, seed, scale=0.3)
