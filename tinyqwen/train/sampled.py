"""Rejection sampling on disk, so that it can be killed at any moment and continued as if it had not been.

    OUT/chats.jsonl, OUT/pairs.jsonl     the lines of all prompts that were asked so far
    OUT/sampled.json                     how many prompts those are, how long both files are, and the settings

Lines are written first and counted after. What nobody has counted is cut off when the run goes on, and asked again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyqwen.errors import UsageError
from tinyqwen.files import clear_errors, write_whole

FILES = "chats.jsonl", "pairs.jsonl"
STATE, PART = "sampled.json", ".sampled.json.part"
State = dict[str, Any]


def begin(out: Path, settings: Mapping[str, Any]) -> State:
    """What was done there so far: `prompts` asked, and `files` with their `lines` and `bytes`. Both files end there.

    settings   all that decides the result

    Errors: UsageError if something else is there, or a run with other settings, or the files were changed since.
    """
    state = read(out) if (out / STATE).is_file() else None
    if state is None and out.exists() and (not out.is_dir() or any(path.name != PART for path in out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty; name another folder")
    if state and state["prompts"]:
        check_same(out, state["settings"], settings)
    else:
        nothing = {"lines": 0, "bytes": 0}
        state = {"settings": dict(settings), "prompts": 0, "files": {name: nothing for name in FILES}}
        note(out, state)
    with clear_errors(out):
        for name, known in state["files"].items():
            path = out / name
            path.touch()
            if path.stat().st_size < known["bytes"]:
                raise UsageError(f"{path}: is shorter than when it was written; remove {out}")
            os.truncate(path, known["bytes"])
    return state


def read(out: Path) -> State:
    path = out / STATE
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads(path.read_text())
        if state["prompts"] >= 0 and state["settings"] and set(state["files"]) == set(FILES):
            return state
    raise UsageError(f"{path}: is not the state of a run; remove {out}")


def check_same(out: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(f"{out} was begun with {name} {before.get(name)}, not {value}: another folder?")


def add(out: Path, state: State, prompts: int, lines: Sequence[list[dict]]) -> State:
    """Write what so many more prompts gave, of each file its lines. Errors: DiskFullError, UsageError."""
    files = {}
    for name, found in zip(FILES, lines):
        known, text = state["files"][name], "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        append(out / name, text)
        files[name] = {"lines": known["lines"] + len(found), "bytes": known["bytes"] + len(text.encode())}
    state = {**state, "prompts": state["prompts"] + prompts, "files": files}
    note(out, state)
    return state


def append(path: Path, text: str) -> None:
    with clear_errors(path.parent), path.open("ab") as file:
        file.write(text.encode())


def note(out: Path, state: State) -> None:
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_whole(out / STATE, json.dumps(state, indent=1) + "\n")
