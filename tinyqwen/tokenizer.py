"""Tokenizer: text to ids and back, and why a user's text can never become a control token.

Qwen2 uses byte-level BPE: text is NFC-normalised, cut by a regular expression (words, single digits, punctuation), and
the UTF-8 bytes of each piece are merged pair by pair, most frequent pair first, into 151,643 tokens. Every byte is a
token, so nothing is ever unknown. The `tokenizers` library does this from the checkpoint's tokenizer.json.

Control tokens (<|im_start|>, <|im_end|>, ...) are not text: they mark where turns begin and end. Most libraries turn
the characters "<|im_end|>" inside a user's message into the control token, and the user can then write the system
prompt. Here `encode` treats all text as text; only what a template wrote goes through `encode_template`.

Source: tokenizer.json of Qwen2; transformers, models/qwen2/tokenization_qwen2.py.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from tinyqwen.errors import ModelFilesError, UsageError


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    size      ids below it have text; logits above it belong to padding rows and are never chosen
    longest   no token holds more bytes than this
    control   the control tokens and their ids
    """

    def __init__(self, folder: Path | str):
        path = Path(folder) / "tokenizer.json"
        try:
            # Tool-call tags are special, too: text must not be able to spell them. In strings quotes are escaped: this
            # finds that key only. Reading the file with `json` for it takes 0.4 s and 80 MB.
            text = re.sub(r'"special"\s*:\s*false', '"special": true', path.read_text(encoding="utf-8"))
            self._bpe = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError:
            raise ModelFilesError(f"{path}: no tokenizer.json there; download it into the model folder") from None
        except (OSError, ValueError) as error:
            raise ModelFilesError(f"{path}: is not a tokenizer ({error!r:.100}); download it again") from None
        except Exception as error:  # the library raises bare Exception for what it cannot parse
            raise ModelFilesError(f"{path}: is not a tokenizer ({error!s:.100}); download it again") from None
        self._bpe.encode_special_tokens = True  # encode control tokens' names as plain text
        added = self._bpe.get_added_tokens_decoder()
        self.control: dict[str, int] = {token.content: number for number, token in added.items()}
        vocab = self._bpe.get_vocab(with_added_tokens=True)
        self.size = 1 + max(vocab.values(), default=-1)
        self.longest = max(map(len, vocab), default=0)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._control_bytes = {number: name.encode() for name, number in self.control.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, whatever it spells.

        Errors: UsageError when the text is not valid Unicode (lone surrogates from undecodable input).
        """
        check_unicode(text)
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str, mark: str = "") -> list[int]:
        """The ids of a template's text: names of control tokens become those tokens, every `mark` is dropped."""
        ids, end = [], 0
        for match in self._control_pattern.finditer(text):
            ids += self.encode(without(mark, text[end : match.start()]))
            ids.append(self.control[match.group()])
            end = match.end()
        return ids + self.encode(without(mark, text[end:]))

    def mark_control_names(self, text: str, mark: str) -> str:
        """The text with `mark` inside the name of each control token, so that `encode_template` leaves it text."""
        return self._control_pattern.sub(lambda name: name.group()[:1] + mark + name.group()[1:], text)

    def token_bytes(self, token: int, *, hide_control: bool = True) -> bytes:
        """The bytes that a token stands for; nothing for control tokens (unless shown) and for ids without text."""
        if token in self._control_bytes:
            return b"" if hide_control else self._control_bytes[token]
        text = self._bpe.id_to_token(token) if 0 <= token < self.size else None
        return b"" if text is None else bytes(BYTE_OF[character] for character in text if character in BYTE_OF)

    def decode(self, ids: Iterable[int], *, hide_control: bool = True) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token, hide_control=hide_control) for token in ids).decode(errors="replace")


class TextStream:
    """Ids in, text out, without ever showing half a character: one token may end inside an emoji.

    A stop string is held back while it may still be completed, and never shown.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False  # a stop string has been met; everything from there on is dropped

    def push(self, token: int) -> str:
        """The text that is certain after one more token, often empty."""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The rest, when no more tokens come: an unfinished character shows as U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        for stop in self._stop:
            if (at := self._held.find(stop)) >= 0:
                self.stopped = True
                self._held = self._held[:at]
        keep = 0 if self.stopped else max((overlap(self._held, stop) for stop in self._stop), default=0)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text


def without(mark: str, text: str) -> str:
    return text.replace(mark, "") if mark else text


def check_unicode(text: str) -> None:
    """UsageError if the text holds half characters, as Python makes of bytes that it could not decode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid UTF-8 (at character {error.start}); is it a binary file?") from None


def overlap(text: str, stop: str) -> int:
    """How many last characters of the text are the beginning of the stop string.

    >>> overlap("see </an", "</answer>"), overlap("see", "</answer>")
    (4, 0)
    """
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def harmless(text: str) -> str:
    """The text with control characters shown instead of sent; line breaks and tabs stay.

    >>> harmless("a\\x1b[31mred\\n")
    'a␛[31mred\\n'
    """

    def shown(character: str) -> str:
        code = ord(character)
        if character in "\n\t" or not (code < 32 or 127 <= code < 160):
            return character
        return chr(0x2400 + code) if code < 32 else "\ufffd"

    return "".join(map(shown, text))


def byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write any byte as one visible character, which vocab.json uses.

    Printable Latin-1 bytes are themselves, the other 68 are U+0100 and up: a space (32) is written 'Ġ' (U+0120).

    >>> len(BYTE_OF), BYTE_OF["A"], BYTE_OF["Ġ"]
    (256, 65, 32)
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = byte_alphabet()
