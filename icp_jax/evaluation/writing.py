"""A model that writes text: its tokenizer, its prompts and chats, and the text piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.data.chat import as_text
from icp_jax.data.hub import resolve
from icp_jax.data.tokenizer import load_tokenizer, vocabulary
from icp_jax.errors import InputError
from icp_jax.generation.generate import rows_of, stream
from icp_jax.generation.pieces import Pieces
from icp_jax.generation.sampling import Sampling, row_keys
from icp_jax.generation.steps import on_device
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource

ADVICE = "copy the tokenizer's files of the model's source there"


class Writer:
    """Writes text with a model; `ids`, `rate` and `stopped` tell of the latest text."""

    def __init__(self, model: str | Path, prompt: str, *, chat: bool, tokens: int, dtype: str):
        """Check the prompt, then load the model. Raises InputError."""
        self.model = str(model)
        with closing(FolderSource(resolve(self.model))) as source:
            vocabulary(source.config)
            self.family, self.dtype = source.family, compute_dtype(dtype)
            self.tokenizer = load_tokenizer(source.folder, ADVICE)
            ids = prompt_ids(self.tokenizer, source.config, prompt, chat, self.model)
            self.prompt = rows_of(source, [ids], tokens)
            self.new, self.ends = tokens, ends(self.tokenizer, source.config, source.folder)
            self._params = on_device(source, self.dtype)
        self.ids: list[int] = []
        self.seconds, self.stopped = 0.0, False

    def __call__(self, sampling: Sampling, seed: int) -> Iterator[str]:
        """Yield the text piece by piece, up to the model's end token."""
        keys = row_keys(jax.random.key(seed), jnp.zeros(1, jnp.int32))
        given = (self.family, self.dtype, self._params, self.prompt, keys, sampling, self.new)
        pieces = Pieces(self.tokenizer, self.prompt[0].tolist())
        self.ids, self.stopped, started = [], False, None
        for (token,) in stream(*given):
            started = started or time.perf_counter()
            self.stopped = int(token) in self.ends
            if self.stopped:
                break
            self.ids.append(int(token))
            yield pieces.add(int(token))
            self.seconds = time.perf_counter() - started
        yield pieces.rest()

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one; None for a single token."""
        return (len(self.ids) - 1) / self.seconds if len(self.ids) > 1 else None

    def record(self, text: str) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "model": self.model,
            "text": text,
            "tokens": self.ids,
            "prompt_tokens": len(self.prompt[0]),
            "stopped": self.stopped,
            "tokens_per_second": self.rate and round(self.rate, 2),
        }


def prompt_ids(
    tokenizer: Any, config: dict[str, Any], prompt: str, chat: bool, model: str
) -> np.ndarray:
    """The prompt's token ids; without a prompt, the token that starts a text.

    Raises InputError.
    """
    if chat:
        if not prompt:
            raise InputError("a chat needs a message: give a prompt")
        messages = [{"role": "user", "content": prompt}]
        text = as_text(tokenizer, messages, model, reply=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    elif prompt:
        ids = tokenizer(prompt, verbose=False)["input_ids"]
    else:
        start = start_token(config, tokenizer)
        if start is None:
            raise InputError(f"{model} has no token that starts a text: give a prompt")
        ids = [start]
    return np.asarray(ids, np.int64)


def start_token(config: dict[str, Any], tokenizer: Any = None) -> int | None:
    """The token that starts a text: the tokenizer's, else the config's; None if there is none."""
    found = getattr(tokenizer, "bos_token_id", None)
    found = config.get("bos_token_id") if found is None else found
    return found if isinstance(found, int) else None


def ends(tokenizer: Any, config: dict[str, Any], folder: Path) -> set[int]:
    """The tokens that end a text: of the tokenizer, the config and `generation_config.json`."""
    path = folder / "generation_config.json"
    try:
        more = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except ValueError:
        raise InputError(f"{path} is not JSON: fix or remove it") from None
    found: set[int] = set()
    for told in (more if isinstance(more, dict) else {}, config):
        ids = told.get("eos_token_id")
        found |= {i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)}
    own = getattr(tokenizer, "eos_token_id", None)
    return found | ({own} if isinstance(own, int) else set())
