"""transformers on torch, as its documentation runs it: `sdpa` attention, last token's logits only, no gradients."""

from __future__ import annotations

import numpy as np

from tinyqwen.bench.contestants.task import Task, some_ids, timed, timed_steps

FORMATS = ("f32", "bf16")
NEEDS = "torch", "transformers"


def prepare(task: Task) -> None:
    """Nothing: it reads the folder as it is."""


def load(task: Task) -> Model:
    return Model(task)


class Model:
    """A loaded model and one cache for each depth that is measured."""

    def __init__(self, task: Task):
        import torch
        import transformers

        torch.set_num_threads(task.threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.new_cache = torch, transformers.DynamicCache
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[task.dtype]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            task.folder, dtype=kind, attn_implementation=task.options.get("attention", "sdpa"), local_files_only=True
        ).eval()
        self.vocabulary = self.model.config.vocab_size
        self.caches: dict = {}
        self.weight_bytes = self.token_bytes = sum(
            weight.numel() * weight.element_size() for weight in self.model.parameters()
        )
        self.about = {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "settings": f"{self.model.config._attn_implementation} attention, {task.dtype} cache",
        }

    def feed(self, cache, ids_ST: np.ndarray) -> np.ndarray:
        """Take the next ids of every sequence, and give each one's next id, the likeliest. S sequences, T ids each."""
        with self.torch.inference_mode():
            out = self.model(self.torch.from_numpy(ids_ST), cache=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1].argmax(-1).numpy()

    def prefill(self, tokens: int) -> float:
        ids = some_ids(self.vocabulary, 1, tokens)
        return timed(lambda: self.feed(self.new_cache(), ids))

    def decode(self, depth: int, tokens: int, sequences: int) -> list[float]:
        cache = self.caches.get((depth, sequences))
        if cache is None:
            cache = self.new_cache()
            for begin in range(0, depth, 512):
                self.feed(cache, some_ids(self.vocabulary, sequences, depth)[:, begin : begin + 512])
            self.caches[depth, sequences] = cache
        if not depth:
            cache = self.new_cache()
        elif cache.get_seq_length() > depth:
            cache.crop(depth - cache.get_seq_length())
        first = some_ids(self.vocabulary, sequences, 1)
        return timed_steps(lambda ids, _: self.feed(cache, ids), first, range(depth, depth + tokens))
