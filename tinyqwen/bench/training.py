"""How fast is a training step, beside torch's? Forward, backward, clipping and AdamW on the same shapes, in turns.

    python -m tinyqwen.bench.training [--sequences 16] [--tokens 256] [--rounds 7] [--threads 2]

The model is the one that this project trains: 1.87 M parameters, in float32. torch's is transformers' Qwen2 with `sdpa`
attention and the fused AdamW. Each works in a process of its own, with as many threads, and sleeps while the other
works. The median of the ratios within a round counts: what slows one down slows its neighbour, too.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import backends
from tinyqwen.bench.contestants.task import Task, some_ids, timed
from tinyqwen.bench.team import Process
from tinyqwen.config import Config
from tinyqwen.config_json import to_json
from tinyqwen.memory import keep_freed
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

CONFIG = Config(
    hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
    head_dim=32, vocab_size=1536, rope_theta=1e6, tie_word_embeddings=True,
)  # fmt: skip


def load(task: Task) -> Any:
    """For `tinyqwen.bench.worker`: one of the two, as `task.options` say."""
    keep_freed()  # either is faster with it
    return {"tinyqwen": Ours, "torch": Torch}[task.options["who"]](task)


class Ours:
    about, weight_bytes, token_bytes = "tinyqwen", 0, 0

    def __init__(self, task: Task):
        from backends.gradient import Gradient
        from tinyqwen.train.optimisers import adamw

        self.optimiser, self.backend = adamw, backends.get("cpu", threads=task.threads)
        self.tensors = random_weights(CONFIG)
        self.weights, self.tape = tree(self.tensors), Gradient(self.backend, self.tensors)
        self.state = adamw.start(self.backend, self.tensors)

    def step(self, sequences: int, tokens: int) -> float:
        ids_ST = some_ids(CONFIG.vocab_size, sequences, tokens + 1)
        return timed(lambda: self.train(ids_ST))

    def train(self, ids_ST: np.ndarray) -> None:
        from tinyqwen.blocks.cross_entropy import log_probability
        from tinyqwen.train.losses import cross_entropy

        step = make_step([(ids_T[:-1].tolist(), None) for ids_T in ids_ST], all_logits=True)
        logits_NV = forward(self.tape, CONFIG, self.weights, step)
        log_p_N = log_probability(self.tape, logits_NV, ids_ST[:, 1:].ravel())
        self.tape.backward(log_p_N, cross_entropy(log_p_N)[1])
        self.optimiser.clip(self.backend, self.tape.gradients, 1.0)
        self.optimiser.adamw(self.backend, self.tensors, self.tape.gradients, self.state, lr=1e-3)
        self.tape.clear()


class Torch:
    about, weight_bytes, token_bytes = "torch", 0, 0

    def __init__(self, task: Task):
        import json

        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.set_num_threads(task.threads)
        config = Qwen2Config(**{**json.loads(to_json(CONFIG)), "attn_implementation": "sdpa"})
        self.torch, self.model = torch, Qwen2ForCausalLM(config).float().train()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def step(self, sequences: int, tokens: int) -> float:
        ids = self.torch.from_numpy(some_ids(CONFIG.vocab_size, sequences, tokens + 1))
        return timed(lambda: self.train(ids))

    def train(self, ids) -> None:
        logits = self.model(ids[:, :-1], use_cache=False).logits
        loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    shape = {"sequences": arguments.sequences, "tokens": arguments.tokens}
    task = {"folder": str(Path()), "exports": str(Path()), "dtype": "f32", "threads": arguments.threads}
    names, seconds = ("tinyqwen", "torch"), {"tinyqwen": [], "torch": []}
    with ExitStack() as stack:
        processes = {}
        for name in names:
            processes[name] = stack.enter_context(Process(__spec__.name, arguments.threads))
            processes[name].ask("load", **task, options={"who": name})
        for number in range(arguments.rounds + 2):  # two to warm up
            for name in names if number % 2 else names[::-1]:
                taken = processes[name].ask("step", **shape)
                if number > 1:
                    seconds[name].append(taken)
    tokens = arguments.sequences * arguments.tokens
    for name in names:
        speeds = sorted(tokens / each for each in seconds[name])
        print(f"{name:10} {statistics.median(speeds):8,.0f} tokens/s   ({speeds[0]:,.0f} to {speeds[-1]:,.0f})")
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["tinyqwen"], seconds["torch"]))
    print(
        f"tinyqwen / torch, within each round: {statistics.median(ratios):.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
