"""Talk with a model.

Type a message and press Enter. Ctrl-C stops the answer, not the program; Ctrl-D or /bye leaves. A message over several
lines begins and ends with three quotes, or each line but the last ends with a backslash. /help lists the commands.

  tinyqwen chat --size 0.5B
  tinyqwen chat --model FOLDER --system "Answer in French." --temperature 0.3
"""

from __future__ import annotations

import argparse
import sys

from tinyqwen.cli import options
from tinyqwen.cli.answering import Answer, answer_all, stats_line, write_text
from tinyqwen.cli.chat_commands import COMMANDS, describe
from tinyqwen.cli.options import read_text
from tinyqwen.context import chunks
from tinyqwen.conversation import Conversation
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.machine import limits_of, seconds_per_span
from tinyqwen.tokenizer import harmless
from tinyqwen.trace.record import Recorder

BEYOND = chunks("192,32,256")  # the embedded model was trained on 256 tokens, which a conversation soon fills
BYE = {"/bye", "/exit", "/quit", "exit", "quit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", "-s", metavar="TEXT", help="the system message; @FILE reads a file")
    parser.add_argument("--no-template", action="store_true", help="plain ChatML instead of the checkpoint's template")
    options.add_model_arguments(parser)
    options.add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if options.is_embedded(arguments) and arguments.yarn is None and arguments.dca is None:
        arguments.dca = BEYOND  # short texts come out as without it, to the bit; long ones need it
    runtime = options.load_model(arguments, together=False)
    system = None if arguments.system is None else read_text(arguments.system, "system message")
    chat = Chat(Conversation(runtime, system, plain=arguments.no_template), arguments)
    chat.header()
    return chat.run()


class Chat:
    """The conversation, the settings of the next answer, and the loop that reads lines."""

    def __init__(self, conversation: Conversation, arguments: argparse.Namespace):
        self.conversation, self.runtime = conversation, conversation.runtime
        self.quiet, self.stop = arguments.quiet, arguments.stop
        self.sampling = options.sampling_of(arguments, self.runtime.generation.sampling)
        self.seed = options.seed_of(arguments)
        self.max_tokens = arguments.max_tokens
        self.interactive = sys.stdin.isatty()
        self.watched_layer: int | None = None  # /trace: the layer to open in the next answer's table
        self.stats = self.interactive if arguments.stats is None else arguments.stats

    # ---- the loop ----

    def run(self) -> int:
        if self.interactive:
            remember_lines()
        warned = False  # Ctrl-C at an empty prompt: once explains, twice leaves
        while True:
            try:
                message = self.read_message()
                warned = False
                if message is None or message.strip() in BYE:
                    return 0
                if message.strip():
                    self.obey(message)
            except TinyqwenError as error:
                self.say(str(error))
                if not self.interactive:
                    return error.exit_code
            except KeyboardInterrupt:
                if warned or not self.interactive:
                    print(file=sys.stderr)
                    return 130
                warned = True
                self.say("\nCtrl-D or /bye leaves; Ctrl-C again, too")

    def read_message(self) -> str | None:
        """The next message, over one line or several; None at the end of the input."""
        line = self.read_line(">>> ")
        if line is None:
            return None
        if line.lstrip().startswith('"""'):
            text = line.lstrip()[3:]
            while not text.rstrip().endswith('"""'):
                more = self.read_line("... ")
                if more is None:
                    return text
                text += "\n" + more
            return text.rstrip()[:-3].strip("\n")
        while line.endswith("\\"):
            more = self.read_line("... ")
            if more is None:
                return line[:-1]
            line = line[:-1] + "\n" + more
        return line

    def read_line(self, prompt: str) -> str | None:
        try:
            if self.interactive:
                return mended(input(prompt))
            line = sys.stdin.buffer.readline().decode(errors="surrogateescape")
            return mended(line.rstrip("\r\n")) if line else None
        except EOFError:
            print(file=sys.stderr)
            return None

    def obey(self, message: str) -> None:
        """Do what a line says: a command, or a message to the model."""
        if not message.startswith("/"):
            return self.ask(message)
        name, _, rest = message.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise UsageError(f"{name} is not a command; /help lists them (nothing was sent to the model)")
        command(self, rest.strip())

    # ---- answers ----

    def ask(self, message: str) -> None:
        self.conversation.messages.append({"role": "user", "content": message})
        try:
            self.answer()
        except BaseException:  # also Ctrl-C before the first token: a question without an answer is taken back
            if self.conversation.messages[-1]["role"] == "user":
                self.conversation.messages.pop()
            raise

    def answer(self) -> None:
        running, reused = self.conversation.answer(
            sampling=self.sampling, seed=self.seed, max_new_tokens=self.max_tokens
        )
        watching, recorder = {}, None
        if self.watched_layer is not None:
            self.runtime.checkpoint.settle()  # a record knows weights by their identity
            recorder = Recorder(self.runtime.backend, self.runtime.checkpoint.weights, running)
            watching = {"backend": recorder.backend, "before_step": recorder.before_step}
        [result] = answer_all(self.runtime, [running], stop=self.stop, show=write_text, quiet=self.quiet, **watching)
        result.reused = reused
        self.conversation.messages.append({"role": "assistant", "content": result.text})
        self.seed += 1  # the next answer rolls other dice, and the whole chat can still be repeated
        write_text("" if result.text.endswith("\n") else "\n")
        self.after(result)
        if recorder is not None:
            self.show_trace(recorder)
        if result.interrupted and not self.interactive:
            raise KeyboardInterrupt

    def after(self, result: Answer) -> None:
        if self.stats:
            self.say(stats_line(result))
        elif result.finish_reason != "stop":
            self.say(f"[{result.finish_reason}]")
        if result.finish_reason == "context":
            self.say("the context is full: /clear forgets the conversation, /undo the last turn")

    def show_trace(self, recorder: Recorder) -> None:
        """The table of the answer that was watched; the next answer is not watched any more."""
        from rich.console import Console

        from tinyqwen.trace.table import print_trace

        opened, self.watched_layer = self.watched_layer, None
        if steps := recorder.steps():
            console = Console(stderr=True)
            backend = self.runtime.backend
            overhead = seconds_per_span(backend=backend)
            print_trace(console, steps, limits_of(backend), opened=opened, overhead=overhead)

    # ---- words to the person ----

    def say(self, text: str) -> None:
        print(harmless(text), file=sys.stderr, flush=True)  # /show has model text in it

    def header(self) -> None:
        if self.quiet:
            return
        config, folder = self.runtime.config, self.runtime.checkpoint.folder
        yarn = f" (YaRN {config.rope_scaling.factor:g})" if config.rope_scaling else ""
        self.say(
            f"{folder.name} · {config.num_hidden_layers} layers · backend {self.runtime.backend.name} · "
            f"context {self.runtime.context}{yarn} · {describe(self)}"
        )
        if self.runtime.is_base:
            self.say("this is a base model: it continues text and was not trained to answer")
        if self.interactive:
            self.say("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")


def mended(line: str) -> str:
    r"""The line, in which what a terminal of another encoding did not understand is UTF-8 after all.

    >>> mended("caf\udcc3\udca9")
    'café'
    """
    try:
        return line.encode(errors="surrogateescape").decode()
    except UnicodeError:
        raise UsageError("that line is not valid UTF-8; nothing was sent to the model") from None


def remember_lines() -> None:
    """Arrow keys, editing and Tab completion of commands; the history of this session stays in memory."""
    try:
        import readline
    except ImportError:  # Windows
        return

    def complete(text: str, state: int) -> str | None:
        matches = [name for name in (*COMMANDS, "/bye") if name.startswith(text)] if text.startswith("/") else []
        return matches[state] if state < len(matches) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
