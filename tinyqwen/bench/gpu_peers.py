"""transformers on the same GPU, in the same run: eager, and with a static cache and torch.compile, as it advises.

    python -m tinyqwen.bench.gpu_peers 0.5B 0 256

A process of its own, so that it shares no memory with ours. Weights are random, in bfloat16, made on the device.
"""

from __future__ import annotations

import json
import sys
import time

from tinyqwen.bench.contestants.task import some_ids
from tinyqwen.bench.gpu import WARM
from tinyqwen.config_json import to_json
from tinyqwen.sizes import SIZES


def model_of(size: str):
    """That size with random weights on the device."""
    import torch
    import transformers

    raw = json.loads(to_json(SIZES[size].config()))
    config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def decode(model, depth: int, tokens: int, compiled: bool) -> float:
    """Tokens a second, greedily, one sequence behind a text of `depth` tokens."""
    import torch
    import transformers

    longest, device = depth + tokens + 2 * WARM + 1, "cuda"
    ids_ST = torch.from_numpy(some_ids(model.config.vocab_size, 1, max(depth, 1))).to(device)
    cache = transformers.StaticCache(config=model.config, max_cache_len=longest) if compiled else (
        transformers.DynamicCache()
    )  # fmt: skip
    one = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True) if compiled else model.forward
    with torch.inference_mode():
        forward, place = model.forward, 0
        for step in range(WARM + tokens):
            if step == WARM:
                torch.cuda.synchronize()
                start = time.perf_counter()
            where_T = torch.arange(place, place + ids_ST.shape[1], device=device)
            out = forward(ids_ST, cache=cache, cache_position=where_T, use_cache=True, logits_to_keep=1)
            ids_ST, place, forward = out.logits[:, -1:].argmax(-1).clone(), place + ids_ST.shape[1], one
        torch.cuda.synchronize()
    return tokens / (time.perf_counter() - start)


def prefill(model, tokens: int) -> float:
    import torch
    import transformers

    ids_ST, best = torch.from_numpy(some_ids(model.config.vocab_size, 1, tokens)).to("cuda"), float("inf")
    with torch.inference_mode():
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(ids_ST, cache=transformers.DynamicCache(), logits_to_keep=1).logits.argmax().item()
            best = min(best, time.perf_counter() - start)
    return tokens / best


def main(size: str, depth: int, tokens: int) -> None:
    """Prints rows as JSON, one a line; what fails says why."""
    import torch
    import transformers

    model, version = model_of(size), f"transformers {transformers.__version__}, torch {torch.__version__}"
    for what, measure in {
        f"decode behind {depth}, transformers eager": lambda: decode(model, depth, tokens, compiled=False),
        f"decode behind {depth}, transformers compiled": lambda: decode(model, depth, tokens, compiled=True),
        "prompt of 2048, transformers": lambda: prefill(model, 2048),
    }.items():
        row = {"model": size, "format": "bf16", "what": what, "version": version}
        try:
            print(json.dumps({**row, "tokens_s": measure()}), flush=True)
        except Exception as error:  # a peer that fails is a line in the results, not the end of them
            print(json.dumps({**row, "why": " ".join(str(error).split())[:300]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
