"""Printing an answer while it is made, and saying afterwards how it went."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tinyqwen.generate import Running
from tinyqwen.memory import peak_bytes
from tinyqwen.runtime import Runtime
from tinyqwen.tokenizer import TextStream, harmless


@dataclass
class Answer:
    """One finished (or interrupted) answer: its text, why it ended, and the clock."""

    running: Running
    reused: int = 0
    text: str = ""
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    ended: float | None = None

    @property
    def finish_reason(self) -> str:
        return "interrupt" if self.interrupted else self.running.finish_reason or "interrupt"

    @property
    def timings(self) -> dict[str, float | None]:
        """Seconds to the first token, and tokens per second of both phases; None where nothing was measured."""
        prompt, new = self.running.prompt_length - self.reused, len(self.running.new_ids)
        ttft = None if self.first_token is None else self.first_token - self.started
        decode = None if self.first_token is None or self.ended is None else self.ended - self.first_token
        return {
            "ttft_s": ttft,
            "prefill_tps": prompt / ttft if ttft else None,
            "decode_tps": (new - 1) / decode if decode and new > 1 else None,
        }


def answer_all(
    runtime: Runtime, sequences: list[Running], *, stop: list[str], show: Callable[[str], None], quiet: bool, **watching
) -> list[Answer]:
    """Run sequences together to their ends, or to Ctrl-C, handing each certain piece of text to `show` at once.

    watching   backend and before_step of whoever looks on, as of `Runtime.generate`
    """
    from tinyqwen.cli.reading import Reading  # and rich with it, which other verbs need not wait for

    answers = {id(running): Answer(running) for running in sequences}
    streams = {id(running): TextStream(runtime.tokenizer, stop) for running in sequences}
    interrupted = False
    with Reading(runtime.config, sequences, quiet=quiet) as reading:
        try:
            for running, token in runtime.generate(sequences, **watching):
                if token is None:
                    reading.update()
                    continue
                reading.clear()
                result, stream = answers[id(running)], streams[id(running)]
                result.ended = time.perf_counter()
                result.first_token = result.first_token or result.ended
                piece = stream.push(token)
                result.text += piece
                show(piece)
                if stream.stopped:
                    running.finish_reason = "stop"
        except KeyboardInterrupt:
            interrupted = True
    for running in sequences:
        result = answers[id(running)]
        result.interrupted = interrupted and running.finish_reason is None
        rest = streams[id(running)].finish()
        result.text += rest
        show(rest)
    return list(answers.values())


def write_text(text: str) -> None:
    """Print model text as it comes: never as markup, and on a terminal without the power to move its cursor.

    What cannot be encoded for the terminal becomes a question mark instead of an error.
    """
    if not text:
        return
    if sys.stdout.isatty():
        text = harmless(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


WHY = {
    "stop": "stop",
    "length": "length (--max-tokens reached; the answer is cut)",
    "context": "context (it is full; the answer is cut)",
    "interrupt": "interrupted",
}


def stats_line(answer: Answer) -> str:
    """How it went, in one line: what was read and written, how fast, how full the context is."""
    running, timings = answer.running, answer.timings
    prompt = running.prompt_length - answer.reused
    parts = [f"prompt {prompt} tok" + (f" (+{answer.reused} reused)" if answer.reused else "")]
    if timings["prefill_tps"]:
        parts[0] += f" {timings['prefill_tps']:.0f} tok/s"
        parts.append(f"TTFT {timings['ttft_s']:.2f} s")
    speed = f" {timings['decode_tps']:.1f} tok/s" if timings["decode_tps"] else ""
    parts.append(f"{len(running.new_ids)} tok{speed}")
    parts.append(f"ctx {len(running.ids)}/{running.context}")
    if (peak := peak_bytes()) is not None:
        parts.append(f"peak {peak / 1e9:.1f} GB")
    parts.append(f"seed {running.seed}")
    parts.append(f"stop={WHY[answer.finish_reason]}")
    return " · ".join(parts)
