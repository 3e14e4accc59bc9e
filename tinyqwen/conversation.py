"""A conversation: messages, and the cache that remembers how far the model has read them.

Every turn renders the whole conversation anew and compares its ids with those in the cache. The common beginning is
kept, the rest is read again. So the messages are the only truth: they can be edited, undone or loaded from a file, and
the cache follows by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from tinyqwen.chat_template import Message
from tinyqwen.errors import UsageError
from tinyqwen.files import write_whole
from tinyqwen.generate import Running
from tinyqwen.runtime import Runtime


class Conversation:
    """Messages with a model.

    messages   what was said, a list of {"role": ..., "content": ...}; free to change between turns
    plain      render with ChatML instead of the checkpoint's template
    """

    def __init__(self, runtime: Runtime, system: str | None = None, plain: bool = False):
        self.runtime = runtime
        self.plain = plain
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._cached_ids: list[int] = []
        self._cache = runtime.cache()

    def answer(self, **settings) -> tuple[Running, int]:
        """The sequence that will answer the messages, and how many tokens of them need not be read again.

        settings   sampling, seed, max_new_tokens, as of `Runtime.start`
        """
        ids = self.runtime.encode_chat(self.messages, plain=self.plain)
        reused = common_length(ids, self._cached_ids[: self._cache.length])
        reused = min(reused, len(ids) - 1)  # the last one's logits are wanted
        if not self._cache.keeps(reused):  # sliding windows have moved on: read it all again
            reused = 0
        self._cache.length = reused
        running = self.runtime.start(ids, cache=self._cache, **settings)
        self._cached_ids = running.ids  # the same list: it grows with the answer, as the cache does
        return running, reused

    def undo(self) -> bool:
        """Take back the last turn, question and answer; False if there is none."""
        questions = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if questions:
            del self.messages[questions[-1] :]
        return bool(questions)

    def save(self, path: Path | str) -> None:
        """Write the messages as JSON, whole or not at all. Errors: DiskFullError, UsageError."""
        write_whole(path, json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n")

    def load(self, path: Path | str) -> None:
        """Take the messages from a JSON file. Errors: UsageError; the conversation is then as it was."""
        try:
            raw = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path}: cannot be read as JSON ({why})") from None
        if not isinstance(raw, list) or not all(is_message(message) for message in raw):
            raise UsageError(f'{path}: must be a list of {{"role": ..., "content": ...}}')
        self.messages = raw


def is_message(value) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def common_length(a: list[int], b: list[int]) -> int:
    """How many ids two lists begin with in common.

    >>> common_length([1, 2, 3], [1, 2, 9, 9])
    2
    """
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
