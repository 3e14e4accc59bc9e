"""Make the embedded model from nothing: its tokenizer, its weights; and its sibling, a mixture of experts.

python -m tinyqwen.tiny.make OUT               about an hour on two cores; again, to continue what was interrupted
python -m tinyqwen.tiny.make OUT --experts     the sibling, when the model is there

OUT/tokenizer/                   trained on the generated data
OUT/run/, OUT/run-experts/       steps as `tinyqwen train` writes them, log.jsonl, and exams.jsonl: what it could when
OUT/model/, OUT/experts/         the results, in bfloat16
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

import backends
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.config import Config
from tinyqwen.errors import TinyqwenError, UsageError
from tinyqwen.files import clear_errors
from tinyqwen.memory import keep_freed
from tinyqwen.tiny.data import Encoder
from tinyqwen.tiny.generators import TASKS
from tinyqwen.tiny.recipe import CONFIG, EXPERTS, Recipe, at, digest
from tinyqwen.tiny.training import examine, held_out, train
from tinyqwen.tiny.vocabulary import write_tokenizer
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import saved
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.train.upcycle import upcycle
from tinyqwen.weights import tensor_shapes, tensors_of

SAVE_EVERY, EXAMINE_EVERY, EXAMINED = 250, 500, 32  # steps; items of each task
GENERATION = {"do_sample": False, "eos_token_id": [1535, 1533], "bos_token_id": 1533, "pad_token_id": 1533}


def make(out: Path, recipe: Recipe, threads: int | None) -> Path:
    """All of it, or what is left of it to do; returns the model's folder."""
    words = out / "tokenizer"
    if not (words / "tokenizer_config.json").is_file():
        write_tokenizer(words, recipe.seed)
        (words / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    run, model = (out / "run-experts", out / "experts") if recipe.experts else (out / "run", out / "model")
    backend, encoder = backends.get("cpu", threads=threads), Encoder(Tokenizer(words))
    if begun := saved.found(run):
        config, tensors = tensors_in(begun[-1])
        state = saved.load_state(begun[-1], tensors)
        saved.check_same(begun[-1], recipe, digest(recipe, state.step))  # type: ignore[arg-type]  # any dataclass
    else:
        config, tensors = begin(out, recipe)
        state = start(backend, tensors)
    saved.continue_log(run, state.step)
    exams = {task: held_out(task, EXAMINED) for task in TASKS if task != "story"}
    for report in train(backend, config, tensors, state, encoder, recipe):
        saved.log(run, report)
        if report.step % EXAMINE_EVERY == 0 or report.step == recipe.steps:
            found = {task: examine(backend, config, tensors, encoder, items) for task, items in exams.items()}
            line = {"step": report.step, "stage": at(recipe.stages, report.step - 1)[0].name, "right": found}
            with (run / "exams.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"step {report.step} of {recipe.steps}: loss {report.loss:.3f},", words_for(found), flush=True)
        if report.step % SAVE_EVERY == 0 or report.step == recipe.steps:
            done = digest(recipe, state.step)
            saved.save(run, words, config, tensors, state, recipe, done)  # type: ignore[arg-type]
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(words, model)
    save_checkpoint(model, config, tensors, dtype="bfloat16")
    return model


def begin(out: Path, recipe: Recipe) -> tuple[Config, dict[str, np.ndarray]]:
    """What training begins with: dice, or the finished model cut into experts."""
    if not recipe.experts:
        return CONFIG, initial_weights(CONFIG, recipe.seed)
    if not (found := saved.found(out / "run")):
        raise UsageError(f"{out}: the model is not there yet, from which the experts are cut; first without --experts")
    return upcycle(*tensors_in(found[-1]), EXPERTS)


def tensors_in(folder: Path) -> tuple[Config, dict[str, np.ndarray]]:
    """A folder's config and tensors, these in float32 and in memory of their own."""
    checkpoint = open_checkpoint(folder, dtype="f32")
    tensors = tensors_of(checkpoint.weights, tensor_shapes(checkpoint.config))
    return checkpoint.config, {name: tensor.copy() for name, tensor in tensors.items()}


def words_for(found: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * share:.0f}" for task, share in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--experts", action="store_true", help="the sibling instead")
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every stage, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="as many as there are cores, if not given")
    arguments = parser.parse_args()
    keep_freed()
    recipe = Recipe(experts=arguments.experts, seed=arguments.seed, scale=arguments.scale)
    try:
        with clear_errors(arguments.out):
            print(make(arguments.out, recipe, arguments.threads))
    except TinyqwenError as error:
        sys.exit(f"tinyqwen: {error}")
    except KeyboardInterrupt:
        print("tinyqwen: stopped; the same command goes on from the last step that was saved", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
