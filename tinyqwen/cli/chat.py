"""Talk with a model.

Type a message and press Enter. Ctrl-C stops the answer, not the program; Ctrl-D or /bye leaves. A message over several
lines begins and ends with three quotes, or each line but the last ends with a backslash. /help lists the commands.

  tinyqwen chat --size 0.5B
  tinyqwen chat --model FOLDER --system "Answer in French." --temperature 0.3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tinyqwen.cli import options
from tinyqwen.cli.answering import Answer, answer_all, stats_line, write_text
from tinyqwen.cli.options import read_file, read_text
from tinyqwen.conversation import Conversation
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.sampling import with_flags

HELP = """\
/help              this list
/clear             forget the conversation (the system message stays)
/regen             answer the last message again, with another seed
/undo              take back the last message and its answer
/system [TEXT]     show or set the system message; it counts from the next answer on
/show              the settings and the conversation, as the model sees it
/set NAME VALUE    temperature, top_k, top_p, min_p, repetition_penalty, seed or max_tokens
/save FILE         write the conversation as JSON          /load FILE    take it from there
/read FILE         send a file's text as the message
/stats             switch the statistics line on or off
/bye               leave (also Ctrl-D, exit, quit)
A message over several lines begins and ends with \"\"\", or each line but the last ends with \\."""

BYE = {"/bye", "/exit", "/quit", "exit", "quit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", "-s", metavar="TEXT", help="the system message; @FILE reads a file")
    parser.add_argument("--no-template", action="store_true", help="plain ChatML instead of the checkpoint's template")
    options.add_model_arguments(parser)
    options.add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    runtime = options.load_model(arguments)
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
                return input(prompt)
            line = sys.stdin.buffer.readline().decode("utf-8", "surrogateescape")
            return line.rstrip("\r\n") if line else None
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
        [result] = answer_all(self.runtime, [running], stop=self.stop, show=write_text, quiet=self.quiet)
        result.reused = reused
        self.conversation.messages.append({"role": "assistant", "content": result.text})
        self.seed += 1  # the next answer rolls other dice, and the whole chat can still be repeated
        write_text("" if result.text.endswith("\n") else "\n")
        self.after(result)
        if result.interrupted and not self.interactive:
            raise KeyboardInterrupt

    def after(self, result: Answer) -> None:
        if self.stats:
            self.say(stats_line(result))
        elif result.finish_reason != "stop":
            self.say(f"[{result.finish_reason}]")
        if result.finish_reason == "context":
            self.say("the context is full: /clear forgets the conversation, /undo the last turn")

    # ---- words to the person ----

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def header(self) -> None:
        if self.quiet:
            return
        config, folder = self.runtime.config, self.runtime.checkpoint.folder
        self.say(
            f"{folder.name} · {config.num_hidden_layers} layers · backend {self.runtime.backend.name} · "
            f"context {self.runtime.context} · {describe(self)}"
        )
        if self.runtime.is_base:
            self.say("this is a base model: it continues text and was not trained to answer")
        if self.interactive:
            self.say("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")


def describe(chat: Chat) -> str:
    """The settings of the next answer in a few words."""
    sampling = chat.sampling
    if not sampling.do_sample:
        words = ["greedy"]
    else:
        words = [f"temperature {sampling.temperature:g}", f"top_k {sampling.top_k}", f"top_p {sampling.top_p:g}"]
        words += [f"min_p {sampling.min_p:g}"] if sampling.min_p else []
    words += [f"repetition_penalty {sampling.repetition_penalty:g}"]
    return " · ".join([*words, f"seed {chat.seed}"] + ([f"max_tokens {chat.max_tokens}"] if chat.max_tokens else []))


# ---- commands: each takes the chat and the rest of the line ----


def clear(chat: Chat, _: str) -> None:
    messages = chat.conversation.messages
    del messages[1 if messages and messages[0]["role"] == "system" else 0 :]
    chat.say("forgotten")


def regenerate(chat: Chat, _: str) -> None:
    messages = chat.conversation.messages
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is no answer to make again")
    old = messages.pop()
    try:
        chat.answer()
    except BaseException:
        if messages[-1]["role"] == "user":
            messages.append(old)
        raise


def undo(chat: Chat, _: str) -> None:
    chat.say("taken back" if chat.conversation.undo() else "there is nothing to take back")


def system(chat: Chat, text: str) -> None:
    messages = chat.conversation.messages
    has_one = bool(messages) and messages[0]["role"] == "system"
    if text:
        messages[: 1 if has_one else 0] = [{"role": "system", "content": text}]
    chat.say(f"system: {messages[0]['content'] if text or has_one else '(that of the template)'}")


def show(chat: Chat, _: str) -> None:
    chat.say(describe(chat))
    if chat.conversation.messages:
        ids = chat.runtime.encode_chat(chat.conversation.messages, plain=chat.conversation.plain, prompt=False)
        chat.say(chat.runtime.tokenizer.decode(ids, hide_control=False))


def set_value(chat: Chat, text: str) -> None:
    name, _, value = text.partition(" ")
    name = {"temp": "temperature", "max-tokens": "max_tokens"}.get(name, name)
    try:
        number: float
        if name in ("seed", "max_tokens", "top_k"):
            number = int(value)
        elif name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            number = float(value)
        else:
            raise UsageError("/set takes temperature, top_k, top_p, min_p, repetition_penalty, seed or max_tokens")
    except ValueError:
        raise UsageError(f"/set {name} needs a number, not {value!r}") from None
    if (name == "seed" and number < 0) or (name == "max_tokens" and number < 1):
        raise UsageError(f"{name} must be at least {0 if name == 'seed' else 1}, is {number}")
    if name in ("seed", "max_tokens"):
        setattr(chat, name, number)
    else:
        chat.sampling = with_flags(chat.sampling, **{name: number})
    chat.say(describe(chat))


def save(chat: Chat, path: str) -> None:
    if not path:
        raise UsageError("/save needs a file name")
    try:
        chat.conversation.save(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    chat.say(f"saved {len(chat.conversation.messages)} messages to {path}")


def load(chat: Chat, path: str) -> None:
    if not path:
        raise UsageError("/load needs a file name")
    chat.conversation.load(path)
    chat.say(f"loaded {len(chat.conversation.messages)} messages from {path}")


def read(chat: Chat, path: str) -> None:
    if not path:
        raise UsageError("/read needs a file name")
    text = read_file(Path(path), "file")
    if not text.strip():
        raise UsageError(f"{path}: is empty")
    chat.ask(text)


def stats(chat: Chat, _: str) -> None:
    chat.stats = not chat.stats
    chat.say(f"statistics {'on' if chat.stats else 'off'}")


COMMANDS = {
    "/help": lambda chat, _: chat.say(HELP),
    "/?": lambda chat, _: chat.say(HELP),
    "/clear": clear,
    "/regen": regenerate,
    "/undo": undo,
    "/system": system,
    "/show": show,
    "/set": set_value,
    "/save": save,
    "/load": load,
    "/read": read,
    "/stats": stats,
}  # fmt: skip


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
