"""A contestant that computes nothing: it answers with the times that its options give, and counts what it is asked."""

import os
import sys
import time

FORMATS = ("f32", "bf16", "int8", "int4")
NEEDS = ()


def prepare(task):
    task.exports.mkdir(parents=True, exist_ok=True)
    (task.exports / f"prepared by {os.getpid()}").touch()


def load(task):
    return Model(task)


class Model:
    weight_bytes, token_bytes = 1000, 900

    def __init__(self, task):
        print("what a library prints is not an answer")
        self.options, self.asked = task.options, 0
        self.about = {"version": "stub 1", "process": os.getpid()}

    def fail(self):
        self.asked += 1
        if self.asked > self.options.get("answers", 10**9):
            print("last words", file=sys.stderr)
            os._exit(7) if self.options.get("die") else None
            raise ValueError("cannot\ngo on")

    def prefill(self, tokens):
        self.fail()
        time.sleep(self.options.get("sleep", 0))
        return tokens / self.options.get("prefill", 100.0)

    def decode(self, depth, tokens, sequences):
        self.fail()
        return [1 / self.options.get("decode", 10.0)] * tokens

    def read(self) -> float:
        return 50e9

    def limits(self):
        return {"read": 1e6, "peaks": {dtype: 1e9 for dtype in FORMATS}}
