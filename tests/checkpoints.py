"""Small model folders for the tests: a random model with a byte tokenizer, and the trained stories260K."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from tinyqwen.bench.models import tokenizer_json
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.config import Config
from tinyqwen.weights import Node, random_weights, walk

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]


def byte_tokenizer_json(extra: tuple[str, ...] = ()) -> dict:
    """A tokenizer.json like Qwen2's with a vocabulary of 256 bytes, a few merges and the control tokens."""
    return tokenizer_json(MERGES, extra)


def write_tiny_checkpoint(
    folder: Path, seed: int = 0, dtype: str = "float32", *, endless: bool = False, **changes
) -> Config:
    """A random model that talks bytes: complete, with padding rows in its tables, and loaded in milliseconds.

    endless   it never says a control token, and so never stops by itself
    """
    values = dict(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=280, tie_word_embeddings=True, rope_theta=1e6, max_position_embeddings=512, eos_token_id=(262,),
    )  # fmt: skip
    config = Config(**{**values, **changes})
    tensors = random_weights(config, seed, scale=0.4)
    if endless:
        tensors["model.embed_tokens.weight"][260:] = 0  # logits of 0, where the likeliest is far above
    save_checkpoint(folder, config, tensors, dtype=dtype)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer_json()), encoding="utf-8")
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    generation["eos_token_id"] = [262, 260]
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return config


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of that folder, by path."""
    found = walk(open_checkpoint(folder).weights)
    return {path: array for path, array in found if not isinstance(array, (Node, list))}


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys() and len(first) > 20
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path], err_msg=path)


def log_of(folder: Path) -> list[dict]:
    """What training wrote down, step by step."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def stories_tensors(data: Path) -> tuple[Config, dict[str, np.ndarray]]:
    """stories260K, a trained Llama, as a Qwen2 checkpoint: zero biases, and q and k rows put into half-split order.

    Llama's pairs for RoPE are neighbours (2i, 2i + 1), Qwen2's are (i, i + K/2): the same model, other row order.
    """
    raw = (data / "stories260K" / "stories260K.bin").read_bytes()
    D, F, L, H, G, V, length = struct.unpack("<7i", raw[:28])
    K = D // H
    numbers = np.frombuffer(raw, "<f4", offset=28)
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)) : at].reshape(shape)

    def half_split(weight_OD: np.ndarray, heads: int) -> np.ndarray:
        return weight_OD.reshape(heads, K // 2, 2, D).transpose(0, 2, 1, 3).reshape(heads * K, D)

    embed, norm1 = take(V, D), take(L, D)
    q, k, v, o = take(L, H * K, D), take(L, G * K, D), take(L, G * K, D), take(L, D, H * K)
    norm2, gate, down, up, norm = take(L, D), take(L, F, D), take(L, D, F), take(L, F, D), take(D)
    tensors = {"model.embed_tokens.weight": embed, "model.norm.weight": norm}
    for layer in range(L):
        tensors |= {
            f"model.layers.{layer}.{name}": tensor
            for name, tensor in {
                "input_layernorm.weight": norm1[layer],
                "self_attn.q_proj.weight": half_split(q[layer], H),
                "self_attn.k_proj.weight": half_split(k[layer], G),
                "self_attn.v_proj.weight": v[layer],
                "self_attn.o_proj.weight": o[layer],
                "self_attn.q_proj.bias": np.zeros(H * K, np.float32),
                "self_attn.k_proj.bias": np.zeros(G * K, np.float32),
                "self_attn.v_proj.bias": np.zeros(G * K, np.float32),
                "post_attention_layernorm.weight": norm2[layer],
                "mlp.gate_proj.weight": gate[layer],
                "mlp.up_proj.weight": up[layer],
                "mlp.down_proj.weight": down[layer],
            }.items()
        }
    config = Config(
        hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H, num_key_value_heads=G,
        vocab_size=V, max_position_embeddings=length, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
        eos_token_id=(1,),
    )  # fmt: skip
    return config, tensors


def stories_pieces(data: Path) -> list[bytes]:
    """What each of stories260K's 512 tokens stands for."""
    raw = (data / "stories260K" / "tok512.bin").read_bytes()
    pieces, at = [], 4
    while at < len(raw):
        size = struct.unpack_from("<i", raw, at + 4)[0]
        piece = raw[at + 8 : at + 8 + size]
        if len(piece) == 6 and piece.startswith(b"<0x"):
            piece = bytes([int(piece[3:5], 16)])
        pieces.append(piece)
        at += 8 + size
    return pieces
