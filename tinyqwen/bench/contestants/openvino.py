"""OpenVINO on the CPU: a graph with a KV cache inside, exported once; see `tinyqwen.bench.openvino_graph`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyqwen.bench.contestants.task import Task, some_ids, timed, timed_steps
from tinyqwen.bench.openvino_graph import write_graph

FORMATS = ("f32", "bf16", "int8", "int4")
NEEDS = ("openvino",)


def place(task: Task) -> Path:
    return task.exports / f"openvino-{task.dtype}.xml"


def prepare(task: Task) -> None:
    """Write the graph of that task, unless it is there already."""
    if not place(task).is_file():
        task.exports.mkdir(parents=True, exist_ok=True)
        write_graph(task.folder, place(task), task.dtype)


def load(task: Task) -> Model:
    return Model(place(task), task)


class Model:
    """A compiled graph and one request (KV cache and work memory) for each thing that is measured."""

    def __init__(self, path: Path, task: Task):
        import openvino

        precision = task.options.get("precision", "f32" if task.dtype == "f32" else "bf16")
        settings = {
            "INFERENCE_NUM_THREADS": str(task.threads),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            **{key.upper(): value for key, value in task.options.items() if key.isupper()},
        }
        core = openvino.Core()
        graph = core.read_model(path)
        self.vocabulary = graph.output(0).partial_shape[2].get_length()
        self.compiled = core.compile_model(graph, "CPU", settings)
        self.requests: dict = {}
        self.weight_bytes = self.token_bytes = path.with_suffix(".bin").stat().st_size
        cache = self.compiled.get_property("KV_CACHE_PRECISION")
        self.about = {
            "version": f"openvino {openvino.__version__.split('-')[0]}",
            "settings": f"{precision} arithmetic, {cache.to_string()} cache",
        }

    def request(self, what):
        """A request and how many tokens its cache holds."""
        if what not in self.requests:
            self.requests[what] = [self.compiled.create_infer_request(), 0]
        return self.requests[what]

    def feed(self, request, ids_ST: np.ndarray, past: int) -> np.ndarray:
        """Take the next ids of every sequence, and give each one's next id, the likeliest. S sequences, T ids each."""
        S, T = ids_ST.shape
        position_ST = np.broadcast_to(np.arange(past, past + T), (S, T))
        out = request.infer(
            {"input_ids": ids_ST, "position_ids": np.ascontiguousarray(position_ST),
             "beam_idx": np.arange(S, dtype=np.int32)},
            share_inputs=True, share_outputs=True,
        )  # fmt: skip
        return out[0][:, -1].argmax(-1)

    def prefill(self, tokens: int) -> float:
        request, _ = self.request("prefill")
        request.reset_state()
        ids = some_ids(self.vocabulary, 1, tokens)
        return timed(lambda: self.feed(request, ids, 0))

    def decode(self, depth: int, tokens: int, sequences: int) -> list[float]:
        """OpenVINO cannot forget tokens one by one: at a depth above 0, what is decoded stays."""
        entry = self.request((depth, sequences))
        request, held = entry
        if held < depth or not depth:
            request.reset_state()
            for begin in range(0, depth, 512):
                self.feed(request, some_ids(self.vocabulary, sequences, depth)[:, begin : begin + 512], begin)
            held = depth
        entry[1] = held + tokens
        first = some_ids(self.vocabulary, sequences, 1)
        return timed_steps(lambda ids, past: self.feed(request, ids, past), first, range(held, held + tokens))
