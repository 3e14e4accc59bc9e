"""tinyqwen behind lm-evaluation-harness, so that MMLU, GSM8K or HumanEval are measured here as they are everywhere.

    pip install 'tinyqwen[eval]'
    python -m tinyqwen eval --size 0.5B --tasks mmlu,gsm8k --limit 50

The harness makes texts of a data set and judges what comes back; a model answers three kinds of question:

    loglikelihood           how likely is this continuation of that context?       (multiple choice)
    loglikelihood_rolling   how likely is this whole text?                         (perplexity)
    generate_until          what comes next, up to one of these words?             (everything that is written)

Its own Hugging Face model is the standard for what these mean, down to the token that stands before a text, and a test
compares the numbers. Names of control tokens in a task's own text become those tokens, as there. But a message that the
chat template frames cannot spell one: `MARK` inside their names keeps them text on their way through the harness.

Source: lm-evaluation-harness 0.4.13, `lm_eval/api/model.py` and `lm_eval/models/huggingface.py`.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from tinyqwen.chat_template import chatml, render_template
from tinyqwen.errors import UsageError
from tinyqwen.evaluate.likelihood import log_likelihoods
from tinyqwen.evaluate.replies import TOGETHER, Prompt, replies
from tinyqwen.runtime import Runtime, load
from tinyqwen.sampling import Sampling, with_flags

MARK = "\ufdd0"  # no character: Unicode keeps it for internal use, so no text contains it
MAX_NEW_TOKENS = 256  # of a task that does not say, as in the harness' own model


@register_model("tinyqwen")
class TinyqwenLM(TemplateLM):
    """A loaded model, or the folder of one (`lm_eval --model tinyqwen --model_args pretrained=FOLDER`).

    together   how many sequences are written at a time
    settings   of `tinyqwen.runtime.load`
    """

    def __init__(
        self, runtime: Runtime | None = None, *, pretrained: str = "", together: int = TOGETHER, batch_size: Any = None,
        max_batch_size: Any = None, device: Any = None, **settings: Any,
    ):  # fmt: skip
        super().__init__()
        self.runtime = runtime or load(pretrained, **settings)
        self.together = together

    # ---- text and tokens ----

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text: the tokenizer's eos_token, as transformers has it."""
        tokenizer, said = self.runtime.tokenizer, self.runtime.template_variables.get("eos_token")
        name = said if said in tokenizer.control else "<|endoftext|>"
        return tokenizer.control.get(name, self.runtime.config.eos_token_id[0])

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: bos_token, or where there is none, as in Qwen2, eos_token."""
        said = self.runtime.template_variables.get("bos_token")
        return self.runtime.tokenizer.control.get(said or "", self.eot_token_id)

    @property
    def max_length(self) -> int:
        return self.runtime.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.runtime.tokenizer.encode_template(string, MARK)

    @property
    def tokenizer_name(self) -> str:
        return self.runtime.checkpoint.folder.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """For the harness' records."""
        return self.runtime.template or "ChatML"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation. Without a prompt, the last message is one that is to be continued."""
        runtime = self.runtime
        messages = [
            {**message, "content": runtime.tokenizer.mark_control_names(message["content"], MARK)}
            for message in chat_history
        ]
        if runtime.template is None:
            text = chatml(messages, prompt=add_generation_prompt)
        else:
            extra = {"messages": messages, "add_generation_prompt": add_generation_prompt}
            [text] = render_template(runtime.template, [{**runtime.template_variables, **extra}])
        if not add_generation_prompt:
            last = messages[-1]["content"]
            text = text[: text.rindex(last) + len(last)]
        return text

    # ---- questions ----

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        if longest := max((len(tokens) for _, tokens in pairs if len(tokens) > self.max_length), default=0):
            raise UsageError(f"a continuation of {longest} tokens is longer than the context of {self.max_length}")
        with tqdm(total=len(pairs), desc="likelihoods", disable=disable_tqdm or None) as bar:
            found = log_likelihoods(self.runtime, pairs, watch=bar.update)
        for (texts, _, _), answer in zip(requests, found):
            if texts is not None:  # a window of a text has none
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Texts longer than the context are cut into windows: each token is counted once, with all before it that
        fits in its window."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, pieces):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm)):
            totals[number] += log_p
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        asked = enumerate(request.args for request in requests)
        prompts = [self.prompt(context, wishes, seed) for seed, (context, wishes) in asked]
        with tqdm(total=len(prompts), desc="replies", disable=disable_tqdm or None) as bar:
            found = [reply.text for reply in replies(self.runtime, prompts, together=self.together, watch=bar.update)]
        for request, text in zip(requests, found):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def prompt(self, context: str, wishes: dict[str, Any], seed: int = 0) -> Prompt:
        """A text to continue, and how; the beginning of one that is too long is left out."""
        wishes = dict(normalize_gen_kwargs(wishes, MAX_NEW_TOKENS))
        limit, stop = wishes.pop("max_gen_toks"), tuple(text for text in wishes.pop("until") if text)
        if limit >= self.max_length:
            raise UsageError(f"a task wants {limit} new tokens, but the context holds {self.max_length}")
        sampled = wishes.pop("do_sample")
        known = {name: wishes.pop(name) for name in Sampling.__dataclass_fields__ if name in wishes}
        if wishes:
            raise UsageError(f"a task's generation_kwargs have {', '.join(wishes)}: not known here")
        own = self.runtime.generation.sampling
        sampling = with_flags(own, **(known if sampled else {"temperature": 0}))
        ids = self.tok_encode(context)[-(self.max_length - limit) :] or [self.prefix_token_id]
        return Prompt(ids, limit, stop, sampling, seed)
