"""A run on disk, so that it can be killed at any moment and continued as if it had not been.

    OUT/step-000500/                     a model folder like any other: chat, generate and transformers load it
    OUT/step-000500/training/            what the optimiser remembers, and the settings
    OUT/log.jsonl                        a line for each step

A step's folder is written under another name and renamed when it is complete: there is either all of it, or none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tinyqwen.checkpoint import save_checkpoint
from tinyqwen.checkpoint.save import write_shards
from tinyqwen.config import Config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.files import clear_errors, write_whole
from tinyqwen.train.optimisers.adamw import AdamState
from tinyqwen.train.training import Report

STATE, MOMENTS, LOG = "training/state.json", "training/moments.safetensors", "log.jsonl"
OTHERS = "score.safetensors"
NOTHING: Mapping = {}
BESIDES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def save(
    out: Path, source: Path, config: Config, tensors: dict[str, np.ndarray], state: AdamState, settings: Any,
    digest: str, keep: int = 2, *, number: int | None = None, about: Mapping[str, str] = NOTHING,
    others: Mapping[str, np.ndarray] = NOTHING,
) -> Path:  # fmt: skip
    """Write the folder of this step, and remove all but the latest `keep`.

    source     the folder that training began with: its tokenizer goes along
    settings   a dataclass: all that decides the result besides the data
    digest     of the data
    number     of the step, if the optimiser does not take exactly one in each
    about      what else decides the result, by name: the stage, other models
    others     tensors that are no part of an ordinary model, for a file of their own

    Errors: DiskFullError, UsageError; folders that were there are left as they were.
    """
    final = out / f"step-{state.step if number is None else number:06d}"
    part = out / f".{final.name}.part"
    with clear_errors(out), ExitStack() as cleanup:
        for left in out.glob(".step-*.part"):  # by a run that was killed while it wrote, or removed
            shutil.rmtree(left)
        cleanup.callback(shutil.rmtree, part, ignore_errors=True)  # half of it would only fill the disk
        (part / "training").mkdir(parents=True)
        save_checkpoint(part, config, {name: x for name, x in tensors.items() if name not in others}, dtype="float32")
        if others:
            write_tensors(part / OTHERS, others)
        for name in BESIDES:
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)
        moments = {f"{kind}.{name}": x for kind in ("m", "v") for name, x in getattr(state, kind).items()}
        write_tensors(part / MOMENTS, moments)
        facts = {"settings": {**asdict(settings), **about}, "data": digest, "updates": state.step}
        (part / STATE).write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in found(out)[:-keep]:
            shutil.rmtree(old.rename(out / f".{old.name}.part"))  # half a step must not look like one
    return final


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file of float32 tensors. A full disk is an OSError, which the library's own errors are not."""
    write_shards({path: list(tensors)}, {name: ("F32", x.shape) for name, x in tensors.items()}, tensors)


def found(out: Path) -> list[Path]:
    """The folders of complete steps, the latest last."""
    return sorted(path for path in out.glob("step-*") if (path / STATE).is_file())


def check_same(folder: Path, settings: Any, digest: str, about: Mapping[str, str] = NOTHING) -> None:
    """UsageError if a run that was begun there had other settings or data: it could not be continued exactly."""
    try:
        begun = json.loads((folder / STATE).read_text())
        before = begun["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelFilesError(f"{folder / STATE}: cannot be read ({error}); remove {folder}") from None
    for name, value in {**about, **asdict(settings)}.items():
        if before.get(name) != value:
            raise UsageError(f"{folder.parent} was begun with {name} {before.get(name)}, not {value}: another folder?")
    if begun.get("data") != digest:
        raise UsageError(f"{folder.parent} was begun with other data: another folder?")


def load_state(folder: Path, tensors: dict[str, np.ndarray]) -> AdamState:
    """What the optimiser remembered.

    Errors: ModelFilesError if that file is not whole, or not of these tensors.
    """
    try:
        moments = safetensors.numpy.load_file(folder / MOMENTS)
        m, v = ({name: moments[f"{kind}.{name}"].reshape(x.shape) for name, x in tensors.items()} for kind in "mv")
    except Exception as error:  # the library has an exception of its own, and raises others
        raise ModelFilesError(f"{folder / MOMENTS}: cannot be used ({error!r:.100}); remove {folder}") from None
    return AdamState(json.loads((folder / STATE).read_text()).get("updates", number_of(folder)), m, v)


def number_of(folder: Path) -> int:
    """How many steps had been taken when this folder was written."""
    return int(folder.name.removeprefix("step-"))


def continue_log(out: Path, step: int) -> None:
    """Forget the lines of steps that will be taken again, and a last line that was cut off."""
    path = out / LOG
    if path.is_file():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_whole(path, "".join(line for line in lines if json.loads(line)["step"] <= step))


def log(out: Path, report: Report) -> None:
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOG).open("a") as file:
            file.write(as_json(report) + "\n")


def as_json(report: Report) -> str:
    """A line; six digits say enough. What the stage has to say besides comes behind the loss.

    >>> as_json(Report(1, 6.931471805, 0.0, 1.5, 0.001, 4096, 0.25, {}))
    '{"step": 1, "loss": 6.93147, "balance": 0.0, "norm": 1.5, "lr": 0.001, "tokens": 4096, "seconds": 0.25}'
    """
    numbers = report._asdict()
    figures = numbers.pop("figures")
    numbers = {"step": report.step, "loss": report.loss, **figures, **numbers}
    return json.dumps({name: float(f"{x:.6g}") if isinstance(x, float) else x for name, x in numbers.items()})
