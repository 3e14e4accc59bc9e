"""Chat templates: from messages to the one text, and the ids, that the model was trained to continue.

ChatML, as every Qwen2 model reads it:

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hi<|im_end|>
    <|im_start|>assistant
                                       <- the model writes from here until <|im_end|>

`chatml` below is that in a few readable lines. A checkpoint brings its own template, in jinja2; it is used as it comes,
in a sandbox (`template_sandbox.py`). The two agree, and a test says so.

What a message says is data. If it spells "<|im_end|>", that stays text: names of control tokens inside messages are
marked before the template runs, and what the template itself wrote is the only source of control tokens.

Source: tokenizer_config.json of Qwen2-Instruct and Qwen2.5-Instruct.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinyqwen.errors import ModelFilesError
from tinyqwen.tokenizer import Tokenizer, check_unicode

Message = dict[str, Any]  # {"role": "user", "content": "Hi"}

LARGEST_TEMPLATE = 64 * 1024
AT_ONCE = 200  # conversations
SECONDS = 10  # for starting a Python, too; the sandbox itself stops after 2 seconds of work


def chatml(messages: list[Message], *, system: str = "You are a helpful assistant.", prompt: bool = True) -> str:
    """The ChatML text of messages. `system` is said when they do not begin with a system message of their own.

    >>> print(chatml([{"role": "user", "content": "Hi"}], system="Be brief."))
    <|im_start|>system
    Be brief.<|im_end|>
    <|im_start|>user
    Hi<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>
    """
    if messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if prompt else "")


def read_template(folder: Path | str) -> tuple[str | None, dict[str, Any]]:
    """The checkpoint's template, or None, and the variables it may use (bos_token, eos_token, pad_token).

    Newer checkpoints keep it in chat_template.jinja, older ones in tokenizer_config.json.
    Errors: ModelFilesError when a file is there but cannot be used.
    """
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    template, variables = None, {}
    try:
        if path.exists():
            raw = json.loads(path.read_text(encoding="utf-8"))
            template = raw.get("chat_template")
            if isinstance(template, list):  # several named ones
                template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
            for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
                token = raw.get(name)
                variables[name] = token.get("content") if isinstance(token, dict) else token
        if (folder / "chat_template.jinja").exists():
            path = folder / "chat_template.jinja"
            template = path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFilesError(f"{path}: cannot be used ({error!r:.100}); download it again") from None
    if template is not None and (not isinstance(template, str) or len(template) > LARGEST_TEMPLATE):
        raise ModelFilesError(f"{path}: the chat template is not a text of at most {LARGEST_TEMPLATE} characters")
    return template, variables


def render_template(template: str, each: list[dict[str, Any]]) -> list[str]:
    """What a checkpoint's template makes of each of these sets of variables, rendered in a limited process.

    >>> render_template("{% for m in messages %}[{{ m.content }}]{% endfor %}", [{"messages": [{"content": "Hi"}]}])
    ['[Hi]']

    Errors: ModelFilesError when the template is wrong, forbidden, too slow or too large.
    """
    request = json.dumps({"template": template, "each": each})
    script = Path(__file__).with_name("template_sandbox.py")
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(script)], input=request, capture_output=True, text=True, timeout=SECONDS
        )
        answer = json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        answer = {"error": "it did not finish in time or memory"}
    if "error" in answer:
        raise ModelFilesError(
            f"the checkpoint's chat template failed: {answer['error']}; --no-template uses plain ChatML"
        )
    return answer["texts"]


def encode_chat(
    tokenizer: Tokenizer,
    messages: list[Message],
    *,
    template: str | None = None,
    variables: dict[str, Any] | None = None,
    tools: list[dict] | None = None,
    prompt: bool = True,
) -> list[int]:
    """The ids of a conversation, ready to be answered (`prompt`) or not. Without a template: `chatml`."""
    more = {**(variables or {}), "tools": tools}
    return encode_chats(tokenizer, [messages], template=template, variables=more, prompt=prompt)[0]


def encode_chats(
    tokenizer: Tokenizer,
    conversations: list[list[Message]],
    *,
    template: str | None = None,
    variables: dict[str, Any] | None = None,
    prompt: bool = True,
) -> list[list[int]]:
    """The same of many conversations: a process for each AT_ONCE of them, as starting one takes a tenth of a second."""
    if len(conversations) > AT_ONCE:
        parts = [conversations[n : n + AT_ONCE] for n in range(0, len(conversations), AT_ONCE)]
        rendered = [
            encode_chats(tokenizer, part, template=template, variables=variables, prompt=prompt) for part in parts
        ]
        return [ids for part in rendered for ids in part]
    everything = json.dumps([template, conversations, variables], ensure_ascii=False)
    check_unicode(everything)
    mark = unused_character(everything)
    marked: Any = deep_map(
        lambda text: tokenizer.mark_control_names(text, mark), [conversations, (variables or {}).get("tools")]
    )
    if template is None:
        texts = [chatml(messages, prompt=prompt) for messages in marked[0]]
    else:
        same = {**(variables or {}), "tools": marked[1], "add_generation_prompt": prompt}
        texts = render_template(template, [{**same, "messages": messages} for messages in marked[0]])
    return [tokenizer.encode_template(text, mark) for text in texts]


def unused_character(text: str) -> str:
    """A private-use character that does not occur in the text.

    >>> unused_character("plain") == "\\ue000", unused_character("\\ue000") == "\\ue001"
    (True, True)
    """
    return next(chr(code) for code in range(0xE000, 0x110000) if chr(code) not in text)


def deep_map(change, value):
    """The value with `change` applied to every text in it, inside lists and objects too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {deep_map(change, key): deep_map(change, item) for key, item in value.items()}
    if isinstance(value, list):
        return [deep_map(change, item) for item in value]
    return value
