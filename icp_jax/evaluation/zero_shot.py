"""The model class of lm-eval: `lm_eval`'s tasks on a folder or a model of this package.

Needs `pip install 'icp-jax[zeroshot]'`. Importing it registers the class under `icp_jax`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  the registry fills itself only as long as it is empty
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from icp_jax.data.hub import resolve
from icp_jax.data.tokenizer import load_tokenizer, vocabulary
from icp_jax.errors import InputError
from icp_jax.evaluation.likelihood import likelihoods, request
from icp_jax.evaluation.until import continued
from icp_jax.evaluation.writing import ADVICE, ends, start_token
from icp_jax.generation.sampling import Sampling
from icp_jax.generation.steps import on_device
from icp_jax.phases import Progress
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource

NEW = 256  # most tokens that a task draws, unless it says otherwise
log = logging.getLogger("icp_jax")


@register_model("icp_jax")
class IcpJaxLM(TemplateLM):
    """A language model that lm-eval can ask.

    pretrained: a folder, a hub id, a `.gguf` file, or a model in memory. dtype: compute dtype.
    max_length: tokens that the model reads at once. Default: its context. progress: see
    `icp_jax.phases`. batch_size, max_batch_size, device: accepted and not used; batches follow the
    memory, and JAX chooses the device. Raises InputError.
    """

    def __init__(
        self,
        pretrained: Any,
        dtype: str = "auto",
        max_length: int | None = None,
        progress: Progress = lambda *event: None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        self._opened = isinstance(pretrained, str | Path)
        self.source = FolderSource(resolve(str(pretrained))) if self._opened else pretrained
        if self.source.family.kind != "text":
            vocabulary(self.source.config)  # raises
        self.dtype, self.progress = compute_dtype(dtype), progress
        context = self.source.family.context
        self.max_length = min(int(max_length or context), context)
        self.tokenizer = load_tokenizer(self.source.folder, ADVICE)
        self._params: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the folder that `pretrained` named."""
        if self._opened:
            self.source.close()

    # ------------------------------------------------------------ tokens

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context. Raises InputError."""
        found = start_token(self.source.config, self.tokenizer)
        found = self.eot_token_id if found is None else found
        if found is None:
            raise InputError(f"{self.source.folder} has no token that starts a text: set one")
        return found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            special = {"add_special_tokens": False}  # a chat template has put it there
        return self.tokenizer(string, verbose=False, **special)["input_ids"]

    @property
    def tokenizer_name(self) -> str:
        return str(self.source.folder).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # ------------------------------------------------------------ requests

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        made = [request(context, found, self.max_length) for _, context, found in requests]
        cut = sum(was_cut for _, was_cut in made)
        if cut:
            log.warning(
                "%d of %d requests exceed the model's context of %d tokens: their start is cut off",
                cut,
                len(made),
                self.max_length,
            )
        asked = [one for one, _ in made]
        results = likelihoods(self.source, asked, dtype=self.dtype, progress=self.progress)
        for (given, *_), result in zip(requests, results, strict=True):
            if given is not None:
                self.cache_hook.add_partial("loglikelihood", given, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        asked, owners = [], []
        for k, (text,) in enumerate(one.args for one in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            asked += [(None, *pair) for pair in pairs]
            owners += [k] * len(pairs)
        sums = [0.0] * len(requests)
        for k, (score, _) in zip(owners, self._loglikelihood_tokens(asked), strict=True):
            sums[k] += score
        for one, score in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", one.args, score)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        texts: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for k, one in enumerate(requests):
            alike.setdefault(repr(sorted(one.args[1].items(), key=str)), []).append(k)
        for done, places in enumerate(alike.values(), 1):
            prompts = [requests[k].args[0] for k in places]
            found = self._generated(prompts, dict(requests[places[0]].args[1]))
            texts |= zip(places, found, strict=True)
            self.progress(-1, "generate", done, len(alike), None)
        for k, one in enumerate(requests):
            self.cache_hook.add_partial("generate_until", one.args, texts[k])
        return [texts[k] for k in range(len(requests))]

    def _generated(self, prompts: list[str], settings: dict[str, Any]) -> list[str]:
        """The continuations of prompts with one set of settings. Raises InputError."""
        given = normalize_gen_kwargs(settings, NEW)
        heat, new = float(given.get("temperature", 0.0)), int(given["max_gen_toks"])
        sampling = Sampling(heat, float(given.get("top_p", 1.0)) if heat else 1.0)
        room = self.max_length - new
        if room < 1:
            raise InputError(
                f"{new} new tokens leave no room for a prompt in the context of "
                f"{self.max_length}: set max_gen_toks to less"
            )
        self._params = self._params or on_device(self.source, self.dtype)
        return continued(
            self.source.family,
            self.dtype,
            self._params,
            [self.tok_encode(prompt)[-room:] or [self.prefix_token_id] for prompt in prompts],
            self.tokenizer,
            given["until"],
            ends(self.tokenizer, self.source.config, self.source.folder),
            (sampling, new),
        )
