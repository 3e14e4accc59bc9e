"""The stages of `train` that are loops of steps: what each reads, and how it becomes lessons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from backends import Backend
from tinyqwen.checkpoint import open_checkpoint
from tinyqwen.config import Config
from tinyqwen.errors import UsageError
from tinyqwen.sampling import read_generation_config
from tinyqwen.tokenizer import Tokenizer
from tinyqwen.train import dpo, grpo, online_dpo, pretrain, reward, rollouts, sft
from tinyqwen.train.chats import END, Format
from tinyqwen.train.data import Chunks, documents
from tinyqwen.train.reference import Reference, frozen
from tinyqwen.train.training import Stage
from tinyqwen.weights import Node, tensor_shapes, tensors_of, tree

ENDOFTEXT = "<|endoftext|>"


class Source(NamedTuple):
    """The model that training begins with: never changed, and the reference of those stages that want one.

    ignored   keys of config.json whose effect is unknown and accepted
    reward    folder of the reward model that judges, if any
    """

    backend: Backend
    folder: Path
    config: Config
    tokenizer: Tokenizer
    ignored: tuple[str, ...]
    reward: str | None

    def format(self) -> Format:
        return Format(self.folder, self.tokenizer)

    def reference(self) -> Reference:
        return frozen(self.backend, self.config, tree(weights_of(self.folder, self.ignored)[1]))

    def policy(self, weights: Node) -> rollouts.Policy:
        """The model with these weights, as one that answers."""
        named = [self.tokenizer.control[name] for name in (END, ENDOFTEXT) if name in self.tokenizer.control]
        stop_ids = frozenset((*named, *self.config.eos_token_id, *read_generation_config(self.folder).eos_token_id))
        tokenizer = self.tokenizer
        return rollouts.Policy(self.backend, self.config, weights, stop_ids, tokenizer.size, tokenizer.decode)

    def judge(self) -> rollouts.Judge:
        """The tasks' own verifiers, or the reward model."""
        if self.reward is None:
            return rollouts.verified
        config, tensors = weights_of(self.reward)
        return reward.judge(self.backend, config, reward.with_score(tensors, 0, Path(self.reward)))


class Kind(NamedTuple):
    """A stage.

    read     from paths, source and settings to data
    stage    from data, settings, source and the weights that learn to what the loop asks for lessons
    talks    from data, source, weights and a number to a prompt and the model's answer, for a person to read
    judged   whether answers are judged, by verifiers or a reward model
    next     what to do with the result
    """

    module: ModuleType
    summary: str
    read: Callable[[list[Path], Source, Any], Any]
    stage: Callable[[Any, Any, Source, Node], Stage]
    talks: Callable[[Any, Source, Node, int], tuple[str, str]] | None = None
    judged: bool = False
    next: str = "python -m tinyqwen chat --model {folder}"


def weights_of(folder: Path | str, ignored: tuple[str, ...] = ()) -> tuple[Config, dict[str, np.ndarray]]:
    """A model folder's config and tensors, these in float32 and in memory of their own."""
    checkpoint = open_checkpoint(folder, dtype="f32", ignore_config=ignored)
    tensors = tensors_of(checkpoint.weights, tensor_shapes(checkpoint.config))
    return checkpoint.config, {name: tensor.copy() for name, tensor in tensors.items()}


def read_text(paths: list[Path], source: Source, settings: pretrain.Settings) -> Chunks:
    if ENDOFTEXT not in source.tokenizer.control:
        raise UsageError(f"the tokenizer has no {ENDOFTEXT}, which stands between documents")
    texts = (source.tokenizer.encode(text) for path in paths for text in documents(path))
    return Chunks(texts, end=source.tokenizer.control[ENDOFTEXT], length=settings.length, seed=settings.seed)


def read_tasks(paths: list[Path], source: Source, settings: online_dpo.Settings) -> rollouts.Tasks:
    return rollouts.read(paths, source.format(), settings.length, judged=source.reward is None)


def read_pairs(paths: list[Path], source: Source, settings: Any) -> dpo.Pairs:
    return dpo.read(paths, source.format(), settings)


def practise(kind: ModuleType) -> Callable[[Any, Any, Source, Node], Stage]:
    def stage(data, settings, source, weights):
        reference = source.reference() if settings.beta else None  # it takes as much memory as the model
        return kind.stage(data, settings, source.policy(weights), source.judge(), reference)

    return stage


def answered(prompt_of: Callable[[Any, int], Sequence[int]]) -> Callable[[Any, Source, Node, int], tuple[str, str]]:
    """The likeliest answer to one of the data's prompts."""

    def talks(data, source, weights, number):
        ids = list(prompt_of(data, number % len(data)))
        answer = rollouts.likeliest(source.policy(weights), ids, tokens=60)
        return source.tokenizer.decode(ids, hide_control=False), answer

    return talks


KINDS = {
    "pretrain": Kind(
        pretrain, "predict the next token of plain text", read_text,
        lambda data, settings, source, weights: pretrain.stage(data, settings),
    ),
    "sft": Kind(
        sft, "say what the assistant says in conversations",
        lambda paths, source, settings: sft.read(paths, source.format(), settings),
        lambda data, settings, source, weights: sft.stage(data, settings),
        answered(lambda data, n: data.examples[n].prompt),
    ),
    "dpo": Kind(
        dpo, "prefer the chosen to the rejected answers of pairs", read_pairs,
        lambda data, settings, source, weights: dpo.stage(data, settings, source.reference()),
        answered(lambda data, n: data.pairs[n].chosen.prompt),
    ),
    "online-dpo": Kind(
        online_dpo, "prefer the best of its own answers to the worst", read_tasks, practise(online_dpo),
        answered(lambda data, n: data.tasks[n].ids), judged=True,
    ),
    "grpo": Kind(
        grpo, "make answers likelier that are better than others of its own", read_tasks, practise(grpo),
        answered(lambda data, n: data.tasks[n].ids), judged=True,
    ),
    "reward": Kind(
        reward, "a model that says what answers are worth, from pairs", read_pairs,
        lambda data, settings, source, weights: reward.stage(data, settings),
        next="python -m tinyqwen train online-dpo --reward {folder} ...",
    ),
}  # fmt: skip
