"""Continue a prompt, or answer one, and leave.

The prompt comes from the command line, a file or standard input. By default it is a question to an instruct model, put
into the chat template; --raw continues it as it stands. Standard output carries the model's text and nothing else.

  tinyqwen generate --size 0.5B "What is the capital of Norway?"
  tinyqwen generate --size 0.5B --base --raw -n 40 "Once upon a time"
  cat letter.txt | tinyqwen generate -m FOLDER -s "Summarise in one sentence." -
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from tinyqwen import __version__, files
from tinyqwen.chat_template import Message
from tinyqwen.cli import options
from tinyqwen.cli.answering import Answer, answer_all, stats_line, write_text
from tinyqwen.cli.options import read_text
from tinyqwen.errors import UsageError
from tinyqwen.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="the prompt; - reads standard input; several need --json")
    parser.add_argument(
        "--prompt", "-p", action="append", default=[], dest="more", metavar="TEXT", help="same (repeatable)"
    )
    parser.add_argument(
        "--file", "-f", action="append", default=[], type=Path, help="a prompt from a file (repeatable)"
    )
    parser.add_argument("--system", "-s", metavar="TEXT", help="the system message; @FILE reads a file")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the prompt as it stands")
    parser.add_argument("--no-template", action="store_true", help="plain ChatML instead of the checkpoint's template")
    parser.add_argument("--show-prompt", action="store_true", help="print the text the model sees, on standard error")
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt instead of text")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    options.add_model_arguments(parser)
    options.add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.raw and (arguments.system is not None or arguments.no_template):
        other = "--no-template" if arguments.no_template else "--system"
        raise UsageError(f"--raw and {other} exclude each other: a text that is only continued has no template")
    prompts = read_prompts(arguments)
    started = time.perf_counter()
    runtime = options.load_model(arguments, together=len(prompts) > 1)
    load_s = time.perf_counter() - started
    sampling, seed = options.sampling_of(arguments, runtime.generation.sampling), options.seed_of(arguments)
    limit = arguments.max_tokens or (runtime.generation.max_new_tokens if arguments.raw else None)
    if runtime.is_base and not arguments.raw and not arguments.quiet:
        print("tinyqwen: this is a base model, it was not trained to answer; --raw continues text", file=sys.stderr)

    sequences = []
    for prompt in prompts:
        ids = encode(runtime, prompt, arguments)
        if arguments.show_prompt:
            print(runtime.tokenizer.decode(ids, hide_control=False), file=sys.stderr)
        sequences.append(runtime.start(ids, sampling=sampling, seed=seed, max_new_tokens=limit))

    show = (lambda text: None) if arguments.json or arguments.no_stream else write_text
    answers = answer_all(runtime, sequences, stop=arguments.stop, show=show, quiet=arguments.quiet)
    for result in answers:
        if arguments.json:
            print(json.dumps(as_json(runtime, result, load_s), ensure_ascii=False))
        elif arguments.no_stream:
            write_text(result.text)
    if not arguments.json and not answers[0].text.endswith("\n"):
        write_text("\n")
    for result in answers:
        cut = result.finish_reason in ("length", "context")
        show_stats = sys.stderr.isatty() if arguments.stats is None else arguments.stats
        if not arguments.quiet and (show_stats or (cut and not arguments.json)):
            print(stats_line(result), file=sys.stderr)
    return 130 if any(result.interrupted for result in answers) else 0


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """All prompts that were given: positional, -p, files; standard input if nothing else is and it is a pipe."""
    prompts = [read_text(text, "prompt") if text == "-" else text for text in arguments.prompt + arguments.more]
    prompts += [files.read_text(path, "prompt") for path in arguments.file]
    if not prompts and not sys.stdin.isatty():
        prompts = [read_text("-", "prompt")]
    if not prompts:
        raise UsageError('no prompt: write one, as in: tinyqwen generate --size 0.5B "What is a prime?"')
    if any(not prompt.strip() for prompt in prompts):
        raise UsageError("the prompt is empty")
    if len(prompts) > 1 and not arguments.json:
        raise UsageError("several prompts need --json: one object a line says which answer is whose")
    return prompts


def encode(runtime: Runtime, prompt: str, arguments: argparse.Namespace) -> list[int]:
    if len(prompt) > runtime.tokenizer.longest * runtime.context:  # cannot fit, and would take long to tokenise
        raise UsageError(
            f"the prompt has {len(prompt)} characters, far more than a context of {runtime.context} tokens"
        )
    if arguments.raw:
        return runtime.tokenizer.encode(prompt)
    messages: list[Message] = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": read_text(arguments.system, "system message")})
    return runtime.encode_chat(messages, plain=arguments.no_template)


def as_json(runtime: Runtime, result: Answer, load_s: float) -> dict:
    """One answer with everything that is needed to make it again."""
    running = result.running
    return {
        "text": result.text,
        "tokens": running.new_ids,
        "finish_reason": result.finish_reason,
        "usage": {"prompt_tokens": running.prompt_length, "completion_tokens": len(running.new_ids)},
        "timings": {"load_s": load_s, **result.timings},
        "seed": running.seed,
        "sampling": dataclasses.asdict(running.sampling),
        "model": runtime.checkpoint.folder.name,
        "backend": runtime.backend.name,
        "version": __version__,
    }
