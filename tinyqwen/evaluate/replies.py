"""What a model says to many prompts: some at a time in the same steps, and as one falls silent the next begins.

A step costs nearly the same for one decoding sequence as for several: it is the weights that take the time to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tinyqwen.generate import Running
from tinyqwen.runtime import Runtime
from tinyqwen.sampling import Sampling
from tinyqwen.tokenizer import TextStream

TOGETHER = 16


class Prompt(NamedTuple):
    """What to continue, and how.

    limit      tokens at most
    stop       texts that end a reply, and do not belong to it
    sampling   how tokens are chosen; greedily by default
    """

    ids: list[int]
    limit: int
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    seed: int = 0


class Reply(NamedTuple):
    """ended: by a token or a text that ends it, and not because there was no more room."""

    text: str
    ended: bool


def replies(
    runtime: Runtime, prompts: Sequence[Prompt], *, together: int = TOGETHER, watch: Callable[[], None] = lambda: None
) -> list[Reply]:
    """The reply to each prompt, in order. The longest prompts come first: what does not fit in memory fails at once.

    together   how many at a time
    watch      called after each
    """
    found: dict[int, Reply] = {}
    waiting = sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids))
    running: list[Running] = []  # `generate` looks at it before each step
    whose: dict[int, tuple[int, TextStream, list[str]]] = {}

    def begin() -> None:
        number = waiting.pop()
        ids, limit, stop, sampling, seed = prompts[number]
        running.append(runtime.start(ids, sampling=sampling, seed=seed, max_new_tokens=limit))
        whose[id(running[-1])] = number, TextStream(runtime.tokenizer, stop), []

    while waiting and len(running) < together:
        begin()
    for sequence, token in runtime.generate(running):
        if token is None:
            continue
        number, stream, text = whose[id(sequence)]
        text.append(stream.push(token))
        if stream.stopped:
            sequence.finish_reason = "stop"
        if sequence.finish_reason:
            found[number] = Reply("".join(text) + stream.finish(), sequence.finish_reason == "stop")
            running.remove(sequence)
            del whose[id(sequence)]
            watch()
            if waiting:
                begin()
    return [found[number] for number in range(len(prompts))]
