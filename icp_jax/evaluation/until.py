"""Continue prompts until a text stops them, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.generation.generate import stream
from icp_jax.generation.sampling import Sampling, row_keys
from icp_jax.models.spec import Family

ROWS = 8  # prompts at once, always as many: the last ones are repeated


def continued(
    family: Family,
    dtype: str,
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    stops: Sequence[str],
    ends: set[int],
    limits: tuple[Sampling, int],
) -> list[str]:
    """The text after each prompt, up to the first stop text, end token or number of tokens.

    params: see `on_device`. limits: how tokens are drawn, and the largest number of them.
    """
    sampling, new = limits
    order = sorted(range(len(prompts)), key=lambda k: -len(prompts[k]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        chosen += chosen[-1:] * (ROWS - len(chosen))
        rows = [np.asarray(prompts[k], np.int32) for k in chosen]
        keys = row_keys(jax.random.key(0), jnp.arange(ROWS, dtype=jnp.int32))
        writers = [_Text(tokenizer, stops, ends) for _ in rows]
        for tokens in stream(family, dtype, params, rows, keys, sampling, new):
            for writer, token in zip(writers, tokens, strict=True):
                writer.add(int(token))
            if all(writer.done for writer in writers):
                break
        texts = _filled(texts, chosen, [writer.text for writer in writers])
    return texts


def _filled(texts: list[str], places: Sequence[int], new: Sequence[str]) -> list[str]:
    found = dict(zip(reversed(places), reversed(new), strict=True))  # the first of repeated ones
    return [found.get(k, text) for k, text in enumerate(texts)]


class _Text:
    """The text of one prompt so far, and whether it has ended."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], ends: set[int]):
        self._tokenizer, self._stops, self._ends = tokenizer, [s for s in stops if s], ends
        self._ids: list[int] = []
        self.text, self.done = "", False

    def add(self, token: int) -> None:
        if self.done:
            return
        if token in self._ends:
            self.done = True
            return
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        cuts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.done, self.text = bool(cuts), text[: min(cuts)] if cuts else text
