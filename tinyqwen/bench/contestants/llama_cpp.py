"""llama.cpp, through llama-cpp-python's plain C interface. Build it on the machine it runs on:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python --no-binary llama-cpp-python

Its settings, the best found on two cores with AVX512-BF16 and VNNI: flash attention on, micro-batches of 512, weights
repacked while loading (Q4_0 and Q8_0), keys and values in float16. It is handed ids and gives logits of the last token
only; the greedy choice is made here as for everybody else.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from tinyqwen.bench.contestants.task import Task, some_ids, timed, timed_steps
from tinyqwen.bench.gguf_file import write_gguf

FORMATS = ("bf16", "int8", "int4")
NEEDS = "llama_cpp", "gguf"
UBATCH = 512


def place(task: Task) -> Path:
    return task.exports / f"llama.cpp-{task.dtype}.gguf"


def prepare(task: Task) -> None:
    """Write the GGUF file of that task, unless it is there already."""
    if not place(task).is_file():
        task.exports.mkdir(parents=True, exist_ok=True)
        write_gguf(task.folder, place(task), task.dtype)


def load(task: Task) -> Model:
    return Model(place(task), task)


class Model:
    """A loaded model and one context (KV cache and work memory) for each thing that is measured."""

    def __init__(self, path: Path, task: Task):
        import llama_cpp

        self.api, self.task = llama_cpp, task
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.silent = silent  # the library keeps only the address
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.contexts: dict = {}
        self.weight_bytes = self.token_bytes = path.stat().st_size
        features = llama_cpp.llama_print_system_info().decode()
        wanted = ("AVX512", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8", "NEON", "REPACK")
        self.about = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "built with": " ".join(name for name in wanted if f"{name} = 1" in features),
            "settings": f"flash attention {task.options.get('flash', 'on')}, f16 cache, micro-batch {UBATCH}",
        }

    def context(self, length: int, sequences: int):
        """A context for so many tokens in each of so many sequences."""
        key = length, sequences
        if key not in self.contexts:
            params = self.api.llama_context_default_params()
            params.n_ctx = -(-length // 256) * 256 * sequences
            params.n_batch = params.n_ubatch = UBATCH
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.task.threads
            on = self.task.options.get("flash", "on") == "on"
            params.flash_attn_type = (
                self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED if on else self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            )
            params.no_perf = True
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError(f"llama.cpp cannot make a context of {length} tokens")
            self.contexts[key] = context, self.api.llama_get_memory(context)
        return self.contexts[key]

    def feed(self, context, ids_ST: np.ndarray, past: int) -> np.ndarray:
        """Take the next ids of every sequence, and give each one's next id, the likeliest. S sequences, T ids each."""
        S, T = ids_ST.shape
        step = max(1, UBATCH // S)
        for begin in range(0, T, step):
            last = begin + step >= T
            part = ids_ST[:, begin : begin + step]
            batch = self.api.llama_batch_init(part.size, 0, 1)
            batch.n_tokens = part.size
            for n in range(part.size):
                sequence, t = divmod(n, part.shape[1])
                batch.token[n] = int(part[sequence, t])
                batch.pos[n] = past + begin + t
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = sequence
                batch.logits[n] = last and t == part.shape[1] - 1
            failed = self.api.llama_decode(context, batch)
            self.api.llama_batch_free(batch)
            if failed:
                raise RuntimeError(f"llama_decode says {failed}")
        width = part.shape[1]
        rows = (self.api.llama_get_logits_ith(context, s * width + width - 1) for s in range(S))
        return np.array([np.ctypeslib.as_array(row, (self.vocabulary,)).argmax() for row in rows])

    def prefill(self, tokens: int) -> float:
        context, memory = self.context(tokens, 1)
        self.api.llama_memory_clear(memory, False)
        ids = some_ids(self.vocabulary, 1, tokens)
        return timed(lambda: self.feed(context, ids, 0))

    def decode(self, depth: int, tokens: int, sequences: int) -> list[float]:
        context, memory = self.context(depth + tokens, sequences)
        held = self.api.llama_memory_seq_pos_max(memory, 0) + 1
        if held < depth or not depth:
            self.api.llama_memory_clear(memory, False)
            if depth:
                self.feed(context, some_ids(self.vocabulary, sequences, depth), 0)
        for sequence in range(sequences):
            self.api.llama_memory_seq_rm(memory, sequence, depth, -1)
        first = some_ids(self.vocabulary, sequences, 1)
        return timed_steps(lambda ids, past: self.feed(context, ids, past), first, range(depth, depth + tokens))
