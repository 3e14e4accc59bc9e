"""lm-evaluation-harness from task names to a table. Only this file and `harness.py` need it to be installed."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyqwen.errors import NetworkError, TinyqwenError, UsageError
from tinyqwen.evaluate.home import FOLDER
from tinyqwen.runtime import Runtime

ASK_FOR_IT = "is a task of lm-evaluation-harness, which is not installed: pip install 'tinyqwen[eval]'"


class Measured(NamedTuple):
    """A figure of a task. filter: how the answer was cut out of the reply; error: its standard error, if known."""

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    asked: int | None


class Tasks:
    """The tasks of these names, looked up before a model is loaded.

    include   a folder with YAML of one's own
    code      whether tasks may run the programs that a model writes
    quiet     no bars while requests are made

    Errors: UsageError for a missing harness, and for a name that it does not know.
    """

    def __init__(self, names: Sequence[str], *, include: Path | None = None, code: bool = False, quiet: bool = False):
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError(f"{names[0]} {ASK_FOR_IT}")
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        if code:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"
        self.names, self.code = list(names), code
        self.manager = TaskManager(include_path=[str(path) for path in (FOLDER, include) if path])
        if unknown := [name for name in names if not self.manager.match_tasks([name])]:
            raise UsageError(f"{unknown[0]} is no task of lm-evaluation-harness, nor of the home tasks")

    def run(self, runtime: Runtime, *, together: int, chat: bool, **settings: Any) -> dict:
        """The harness' own results. `settings` as of `lm_eval.simple_evaluate`: limit, num_fewshot ...

        Errors: NetworkError when a data set cannot be had; TinyqwenError for what else fails inside.
        """
        import lm_eval

        from tinyqwen.evaluate.harness import TinyqwenLM

        model = TinyqwenLM(runtime, together=together)
        try:
            return lm_eval.simple_evaluate(
                model, tasks=self.names, task_manager=self.manager, apply_chat_template=chat,
                fewshot_as_multiturn=chat, confirm_run_unsafe_code=self.code, **settings,
            )  # fmt: skip
        except TinyqwenError:
            raise
        except ConnectionError as error:  # a data set's page, or the one that tells where it is
            raise NetworkError(f"a task's data cannot be downloaded: {error}") from error
        except Exception as error:  # whatever is wrong in a task's file, data or metric
            raise TinyqwenError(f"lm-evaluation-harness: {error!r:.300} (--debug shows where)") from error


def figures(results: dict) -> list[Measured]:
    """The figures of all tasks and groups; those that are no numbers are left out.

    >>> table = {"t": {"alias": " - t", "name": "t", "acc,none": 0.5, "acc_stderr,none": 0.1}}
    >>> figures({"results": table, "n-samples": {"t": {"effective": 25}}})
    [Measured(task='t', metric='acc', filter='none', value=0.5, error=0.1, asked=25)]
    """
    found = []
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = row.get(f"{metric}_stderr,{kind}")
                asked = results.get("n-samples", {}).get(task, {}).get("effective")
                found.append(Measured(task, metric, kind, value, error if isinstance(error, float) else None, asked))
    return found
