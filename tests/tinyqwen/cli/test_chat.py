"""The chat at a real terminal (a pseudo-terminal), key by key: what Ctrl-C, Ctrl-D and every command do."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.cli.chat import mended
from tinyqwen.cli.chat_commands import COMMANDS, HELP
from tinyqwen.errors import UsageError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that never stops by itself, so that an answer can be interrupted."""
    folder = tmp_path_factory.mktemp("endless")
    write_tiny_checkpoint(folder, endless=True, max_position_embeddings=1_000_000)
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    return folder


class Terminal:
    """A chat in a pseudo-terminal. `see` waits for text on the screen, `type` presses keys."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinyqwen", "chat", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def see(self, pattern, seconds=20):
        """Wait until the pattern is on the part of the screen not yet looked at; that part is then looked at."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.screen)):
            assert time.monotonic() < end, f"did not see {pattern!r} in {self.screen[-2000:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the program has left
                    assert re.search(pattern, self.screen), f"ended without {pattern!r}: {self.screen[-2000:]!r}"
        self.screen = self.screen[match.end() :]
        return match

    def type(self, text):
        os.write(self.master, text.encode())

    def leaves_with(self, code):
        while self.process.poll() is None:  # a full pseudo-terminal would block the program: keep reading
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    os.read(self.master, 65536)
                except OSError:
                    break
        assert self.process.wait(20) == code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(folder):
    opened = []

    def open_(*arguments):
        opened.append(Terminal("-m", folder, "--seed", 1, *arguments))
        opened[-1].see(">>> ")
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal):
    chat = terminal()
    for _ in range(3):
        chat.type("tell me everything\n")
        time.sleep(0.3)
        chat.type("\x03")
        chat.see("stop=interrupted")
        chat.see(">>> ")
    chat.type("/bye\n")
    chat.leaves_with(0)


def test_many_interrupts_at_any_moment_leave_a_usable_prompt(terminal):
    """Moments spread over typing, reading, template, prefill and decoding; each time the next prompt comes."""
    chat = terminal("--max-tokens", "4000")
    for n in range(12):
        chat.type("hello\n")
        time.sleep(0.003 * n * n)
        os.killpg(chat.process.pid, signal.SIGINT)
        chat.see(r"(?s)(stop=|interrupted|Ctrl-D).*>>> ")
        chat.type("/set seed 5\n")  # also makes the next Ctrl-C at the prompt a first one
        chat.see("seed 5")
        chat.see(">>> ")
    chat.type("\x04")
    chat.leaves_with(0)


def test_ctrl_c_at_the_prompt_explains_and_a_second_one_leaves(terminal):
    chat = terminal()
    time.sleep(0.3)  # no person is faster than the line editor's start, but a test is
    chat.type("\x03")
    chat.see("Ctrl-D or /bye leaves")
    chat.see(">>> ")
    time.sleep(0.3)
    chat.type("\x03")
    chat.leaves_with(130)


def test_ctrl_d_leaves(terminal):
    chat = terminal()
    chat.type("\x04")
    chat.leaves_with(0)


def test_arrow_keys_bring_back_what_was_typed(terminal):
    chat = terminal("--max-tokens", "3")
    chat.type("first words\n")
    chat.see("stop=length")
    chat.see(">>> ")
    chat.type("\x1b[A")
    chat.see("first words")
    chat.type("\n")
    chat.see("stop=length")


def test_messages_over_several_lines(terminal):
    chat = terminal("--max-tokens", "3")
    chat.type('"""one\n')
    chat.see(r"\.\.\. ")
    chat.type('two"""\n')
    chat.see("stop=length")
    chat.type("three\\\n")
    chat.see(r"\.\.\. ")
    chat.type("four\n")
    chat.see("stop=length")
    chat.type("/show\n")
    shown = chat.see(r"(?s)<\|im_start\|>system.*<\|im_end\|>\s+>>> ").group()
    assert "one\r\ntwo<|im_end|>" in shown and "three\r\nfour<|im_end|>" in shown


def test_a_second_turn_reuses_the_first(terminal):
    chat = terminal("--max-tokens", "3")
    chat.type("hello\n")
    chat.see("prompt 57 tok")
    chat.type("hello\n")
    assert int(chat.see(r"\(\+(\d+) reused\)").group(1)) >= 57


def piped(folder, *lines, arguments=()):
    """A chat fed by a pipe: (exit code, standard output, standard error)."""
    done = subprocess.run(
        [sys.executable, "-m", "tinyqwen", "chat", "-m", folder, "--seed", "1", "-n", "4", *arguments],
        input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_pipe_is_a_chat_without_prompts_or_colours(folder):
    code, out, err = piped(folder, "hello", "and you?")
    assert code == 0
    assert len(out.split("\n")) == 3 and ">>>" not in out and "\x1b" not in out
    assert "endless" in err


def test_the_header_names_yarn_and_the_context_that_it_makes(folder):
    code, _, err = piped(folder, "hello", arguments=("--yarn", "2"))
    assert code == 0 and "context 2000000 (YaRN 2)" in err


def test_every_command_is_in_the_help_and_works(folder, tmp_path):
    assert all(name in HELP for name in COMMANDS if name != "/?")
    file = tmp_path / "chat.json"
    (tmp_path / "letter.txt").write_text("dear model")
    code, _, err = piped(
        folder, "/help", "/?", "/system", "/system Be brief.", "one", "/regen", "/stats", "two", "/stats", "/undo",
        f"/save {file}", "/clear", "/show", f"/load {file}", f"/read {tmp_path / 'letter.txt'}", "/set temperature 0.5",
        "/set max_tokens 2", "/set top_k 5", "/set seed 9", "/show", "/trace 1", "three", "/bye",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(file.read_text())[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in json.loads(file.read_text())] == ["system", "user", "assistant"]
    assert "taken back" in err and "saved 3 messages" in err and "loaded 3 messages" in err and "forgotten" in err
    assert "temperature 0.5 · top_k 5" in err and "seed 9 · max_tokens 2" in err
    assert "dear model" in err
    assert "layers.1 and 0" in err and "total decode" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "not a command"),
        ("/regen", "no answer"),
        ("/set", "/set takes"),
        ("/set temperature hot", "number"),
        ("/set temperature -1", "temperature must be above 0"),
        ("/set max_tokens 0", "at least 1"),
        ("/set seed -1", "at least 0"),
        ("/save", "file name"),
        ("/save /no/such/folder/x", "cannot be written"),
        ("/load", "file name"),
        ("/load /no/such/file", "No such file"),
        ("/read", "file name"),
        ("/read /no/such/file", "No such file"),
        ("/trace 99", "from 0 to 1"),
        ("\udcff\udcfe", "UTF-8"),
    ],
)
def test_a_wrong_command_is_one_clear_line(folder, line, words):
    done = subprocess.run(
        [sys.executable, "-m", "tinyqwen", "chat", "-m", folder, "-q"],
        input=line.encode(errors="surrogateescape") + b"\n", capture_output=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == b""
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr.decode()


def test_what_was_said_cannot_move_the_cursor_when_it_is_shown(tinyqwen, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/system a\x1b[2Jb\n/show\n")))
    code, _, err = tinyqwen("chat", "-m", folder, "-q")
    assert code == 0 and "\x1b" not in err and err.count("a\u241b[2Jb") == 2


def test_a_line_that_a_terminal_of_another_encoding_read_is_utf_8_after_all():
    assert mended("caf\udcc3\udca9 \U0001f600") == "caf\xe9 \U0001f600"
    with pytest.raises(UsageError, match="nothing was sent"):
        mended("\udcff")
