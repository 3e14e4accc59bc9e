"""The slash commands of a chat: each takes the chat and the rest of the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyqwen.errors import UsageError
from tinyqwen.files import read_text
from tinyqwen.sampling import with_flags

if TYPE_CHECKING:
    from tinyqwen.cli.chat import Chat

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
/trace [LAYER]     watch the next answer: every operation's shape, time and distance from the machine's limit
/bye               leave (also Ctrl-D, exit, quit)
A message over several lines begins and ends with \"\"\", or each line but the last ends with \\."""


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
    chat.conversation.save(path)
    chat.say(f"saved {len(chat.conversation.messages)} messages to {path}")


def load(chat: Chat, path: str) -> None:
    if not path:
        raise UsageError("/load needs a file name")
    chat.conversation.load(path)
    chat.say(f"loaded {len(chat.conversation.messages)} messages from {path}")


def read(chat: Chat, path: str) -> None:
    if not path:
        raise UsageError("/read needs a file name")
    text = read_text(path, "file")
    if not text.strip():
        raise UsageError(f"{path}: is empty")
    chat.ask(text)


def stats(chat: Chat, _: str) -> None:
    chat.stats = not chat.stats
    chat.say(f"statistics {'on' if chat.stats else 'off'}")


def trace(chat: Chat, layer: str) -> None:
    layers = chat.runtime.config.num_hidden_layers
    if layer and not (layer.isdecimal() and int(layer) < layers):
        raise UsageError(f"/trace takes a layer from 0 to {layers - 1}, not {layer!r}")
    chat.watched_layer = int(layer or 0)
    chat.say("the next answer will be watched")


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
    "/trace": trace,
}  # fmt: skip
