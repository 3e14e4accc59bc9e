"""Make the embedded model from nothing: its tokenizer, its weights, its examination.

    python -m tinyqwen.tiny.make OUT            at most two hours on two cores; again, to continue what was interrupted

    OUT/tokenizer/        trained on the generated data
    OUT/run/              steps as `tinyqwen train` writes them, log.jsonl, and exams.jsonl: what it could do when
    OUT/model/            the result, in bfloat16
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import backends
from tinyqwen.checkpoint import open_checkpoint, save_checkpoint
from tinyqwen.memory import keep_freed
from tinyqwen.tiny.data import Encoder
from tinyqwen.tiny.generators import TASKS
from tinyqwen.tiny.recipe import CONFIG, Recipe, at, digest
from tinyqwen.tiny.training import examine, held_out, train
from tinyqwen.tiny.vocabulary import write_tokenizer
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import saved
from tinyqwen.train.initial import initial_weights
from tinyqwen.train.optimisers.adamw import start
from tinyqwen.weights import tensor_shapes, tensors_of

SAVE_EVERY, EXAMINE_EVERY, EXAMINED = 250, 500, 32  # steps; items of each task
GENERATION = {"do_sample": False, "eos_token_id": [1535, 1533], "bos_token_id": 1533, "pad_token_id": 1533}


def make(out: Path, recipe: Recipe, threads: int) -> Path:
    """All of it, or what is left of it to do; returns the model's folder."""
    words, run, model = out / "tokenizer", out / "run", out / "model"
    if not (words / "tokenizer_config.json").is_file():
        write_tokenizer(words, recipe.seed)
        (words / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    backend, encoder = backends.get("cpu", threads=threads), Encoder(Tokenizer(words))
    begun = saved.found(run)
    if begun:
        checkpoint = open_checkpoint(begun[-1], dtype="f32")
        shapes = tensor_shapes(CONFIG)
        tensors = {name: tensor.copy() for name, tensor in tensors_of(checkpoint.weights, shapes).items()}
        state = saved.load_state(begun[-1], tensors)
        saved.check_same(begun[-1], recipe, digest(recipe, state.step))
    else:
        tensors = initial_weights(CONFIG, recipe.seed)
        state = start(backend, tensors)
    saved.continue_log(run, state.step)
    exams = {task: held_out(task, EXAMINED) for task in TASKS if task != "story"}
    for report in train(backend, CONFIG, tensors, state, encoder, recipe):
        saved.log(run, report)
        if report.step % EXAMINE_EVERY == 0 or report.step == recipe.steps:
            found = {task: examine(backend, CONFIG, tensors, encoder, items) for task, items in exams.items()}
            line = {"step": report.step, "stage": at(recipe.stages, report.step - 1)[0].name, "right": found}
            with (run / "exams.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"step {report.step} of {recipe.steps}: loss {report.loss:.3f},", words_for(found), flush=True)
        if report.step % SAVE_EVERY == 0 or report.step == recipe.steps:
            saved.save(run, words, CONFIG, tensors, state, recipe, digest(recipe, state.step))
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(words, model)
    save_checkpoint(model, CONFIG, tensors, dtype="bfloat16")
    return model


def words_for(found: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * share:.0f}" for task, share in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every stage, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed()
    print(make(arguments.out, Recipe(seed=arguments.seed, scale=arguments.scale), arguments.threads))


if __name__ == "__main__":
    main()
