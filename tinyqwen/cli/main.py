"""Arguments in, exit code out. Each verb is a module with `add_arguments(parser)` and `run(arguments) -> int`.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 3 model files invalid, 4 would not fit in memory,
5 network, 6 disk full, 130 interrupted.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import difflib
import errno
import faulthandler
import importlib
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator

from tinyqwen import __version__
from tinyqwen.errors import DiskFullError, DoesNotFitError, TinyqwenError, UsageError

VERBS = {
    "bench": "how fast this machine runs a model, how fast it could, and beside others",
    "chat": "talk with a model",
    "convert": "write a model in another weight format, and what that costs",
    "diff": "where two ways of running a model part: noise or a bug?",
    "doctor": "what this machine has, what the program uses of it, and what is missing",
    "eval": "how good is a model? home tasks, or those of lm-evaluation-harness",
    "generate": "continue a prompt, or answer one, and leave",
    "info": "the published models, or one model, in numbers",
    "needle": "does a model find one fact in a long text? by length, depth and way to look far back",
    "plan": "memory and speed of any size, without downloading it",
    "tokens": "show how a text is cut into tokens",
    "train": "teach a model: from nothing, or from where it stands",
    "trace": "watch every operation: shape, time, distance from the machine's limit",
}

WELCOME = """\
python -m tinyqwen chat                    talk with the small model that is built in, offline: What is 17 + 25?
python -m tinyqwen chat --size 0.5B        download Qwen2-0.5B-Instruct (1 GB, once) and talk with it
python -m tinyqwen info                    which models there are, in numbers; --help lists all commands\
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; nothing a person may do wrong ends in a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv or os.environ.get("TINYQWEN_DEBUG") == "1"
    # A file that shrinks while it is mapped raises SIGBUS; this at least says where, instead of dying without a word.
    if sys.stderr is not None and not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError):  # a standard error that is no file, as in some notebooks
            faulthandler.enable()
    warnings.showwarning = lambda message, *_: print(f"tinyqwen: {message}", file=sys.stderr)
    try:
        with no_interrupt_lost():
            return dispatch(argv)
    except TinyqwenError as error:
        return complain(error, error.exit_code, debug)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has left, as in `tinyqwen ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return complain(DoesNotFitError(f"out of memory ({error}); take a smaller model or a shorter text"), 4, debug)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f" ({error.filename})" if error.filename else ""
        return complain(DiskFullError(f"the disk is full{where}") if full else error, 6 if full else 1, debug)


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Ctrl-C while Python throws something away (loading kernels does that often) would be shown and forgotten.

    Python cannot raise anything from there; in this block the interrupt comes again, a moment later.
    """
    before = sys.unraisablehook

    def hook(lost) -> None:
        if lost.exc_type is KeyboardInterrupt:
            threading.Timer(0.01, _thread.interrupt_main).start()  # at once would be in here, and lost again
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def complain(error: Exception, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"tinyqwen: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def dispatch(argv: list[str]) -> int:
    if not argv:
        print(WELCOME)
        return 0
    arguments, strangers = make_parser([word for word in argv if word in VERBS]).parse_known_args(argv)
    parser = vars(arguments).pop("parser")
    if strangers:
        raise UsageError(unknown(strangers[0], parser))
    arguments.words = argv  # as they were typed, for those who tell them again
    return importlib.import_module(f"tinyqwen.cli.{arguments.verb}").run(arguments)


class Parser(argparse.ArgumentParser):
    """argparse's, but what is wrong is one line of ours; `parser` is that of the verb, or of its stage."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.set_defaults(parser=self)

    def error(self, message: str):
        raise UsageError(f"{message}; {self.prog} --help says more")


def unknown(word: str, parser: argparse.ArgumentParser) -> str:
    """What to say of an argument that the verb does not take."""
    flag = word.partition("=")[0]
    near = difflib.get_close_matches(flag, re.findall(r"--[a-z][a-z-]+", parser.format_help()), 1, cutoff=0.75)
    meant = f"; did you mean {near[0]}?" if near else f"; {parser.prog} --help tells what it takes"
    return f"{parser.prog.removeprefix('tinyqwen ')} does not take {flag}{meant}"


def make_parser(wanted: Collection[str] = VERBS) -> Parser:
    """The parser; the flags of the verbs that are wanted, from their modules.

    Importing one verb takes a moment, importing all of them half a second: a command waits for its own.
    """
    parser = Parser(
        prog="tinyqwen",
        description="Qwen2 language models, explained by code that runs them.",
        epilog="tinyqwen VERB --help tells more about one of them.",
    )
    parser.add_argument("--version", action="version", version=f"tinyqwen {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        if verb not in wanted:
            verbs.add_parser(verb, help=summary)
            continue
        module = importlib.import_module(f"tinyqwen.cli.{verb}")
        verb_parser = verbs.add_parser(
            verb, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(verb_parser)
        verb_parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
