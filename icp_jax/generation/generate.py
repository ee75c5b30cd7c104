"""Generate tokens: prompts in, the model's own tokens out, with static shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from icp_jax.errors import InputError
from icp_jax.generation.sampling import Sampling, choose, row_keys
from icp_jax.generation.steps import Params, Slots, advance, on_device
from icp_jax.models.spec import Family
from icp_jax.streaming.passes import compute_dtype

FINE, COARSE = 16, 256  # padded lengths: powers of two from FINE to COARSE, then multiples
_choose = jax.jit(choose, static_argnums=0)


@runtime_checkable
class Source(Protocol):
    """A model: in memory, or in a folder."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def family(self) -> Family: ...
    def embed(self) -> Params: ...
    def block(self, t: int) -> Params: ...
    def head(self) -> Params: ...


def padded(length: int) -> int:
    """The length that a prompt or a cache is padded to, so that few programs serve all lengths."""
    if length >= COARSE:
        return -(-length // COARSE) * COARSE
    return max(FINE, 1 << (length - 1).bit_length())


def rows_of(source: Source, tokens: Any, new: int) -> list[np.ndarray]:
    """The prompts as rows of int32. Raises InputError for prompts that the model cannot take."""
    if source.family.kind != "text":
        raise InputError("only a language model writes text, and this model reads images")
    if isinstance(tokens, np.ndarray | jax.Array):
        tokens = np.atleast_2d(np.asarray(tokens))
    rows = [np.asarray(row) for row in tokens]
    vocabulary, context = source.config["vocab_size"], source.family.context
    if not rows or any(row.ndim != 1 or not row.size or row.dtype.kind not in "iu" for row in rows):
        raise InputError("prompts must be rows of at least one token id")
    if new < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {new}")
    longest = max(map(len, rows))
    if longest + new > context:
        fewer = f" or ask for at most {context - longest} tokens" if longest < context else ""
        raise InputError(
            f"{longest} tokens of prompt and {new} new ones exceed the model's context of "
            f"{context}: shorten the prompt{fewer}"
        )
    if any(not 0 <= row.min() <= row.max() < vocabulary for row in rows):
        raise InputError(f"token ids must be in [0, {vocabulary}), the model's vocabulary")
    return [row.astype(np.int32) for row in rows]


def stream(
    family: Family,
    dtype: str,
    params: Params,
    rows: Sequence[np.ndarray],
    keys: Key[Array, "b"],
    sampling: Sampling,
    new: int,
) -> Iterator[Int[np.ndarray, "b"]]:
    """Yield the next token of every row, `new` times. params: see `on_device`."""
    length = padded(max(map(len, rows)))
    room = padded(length + new)
    tokens = np.zeros((len(rows), length), np.int32)
    for tokens_of, row in zip(tokens, rows, strict=True):
        tokens_of[length - len(row) :] = row
    first = jnp.asarray([length - len(row) for row in rows], jnp.int32)
    numbers = jnp.float32(sampling.temperature), jnp.float32(sampling.top_p)
    go = partial(advance, family, dtype, room, params)
    empty: Any = [{} for _ in range(family.n_blocks)]
    logits, caches = go(empty, jnp.asarray(tokens), Slots(jnp.int32(0), first))
    for step in range(new):
        token = _choose(sampling.kind, logits, keys, jnp.int32(step), *numbers)
        if step + 1 < new:  # the device goes on while the host reads the token
            slots = Slots(jnp.int32(length + step), first)
            logits, caches = go(caches, token[:, None], slots)
        yield np.asarray(token)


def generate(
    model: Source,
    tokens: Any,
    key: Key[Array, ""] | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos: int | Collection[int] | None = None,
    dtype: str = "auto",
) -> Int[np.ndarray, "b n"]:
    """Let a language model go on from prompts.

    tokens: ids `[b, t]`, or a list of rows that may differ in length. key: for drawing; unset:
    `jax.random.key(0)`. temperature: 0 takes the likeliest token; 1 draws from the model's own
    distribution. top_p: draw from the likeliest tokens that hold this probability. eos: ids that
    end a row; a row that has ended is filled up with the id that ended it. Unset: none.
    dtype: compute dtype. Returns the new tokens, `[b, n]` int32, n at most max_new_tokens.
    Raises InputError.
    """
    sampling, dtype = Sampling(float(temperature), float(top_p)), compute_dtype(dtype)
    rows = rows_of(model, tokens, max_new_tokens)
    ends = [] if eos is None else [eos] if isinstance(eos, int | np.integer) else list(eos)
    key = jax.random.key(0) if key is None else key
    keys = row_keys(key, jnp.arange(len(rows), dtype=jnp.int32))
    params = on_device(model, dtype)
    found: list[np.ndarray] = []
    ended = np.zeros(len(rows), bool)
    for token in stream(model.family, dtype, params, rows, keys, sampling, max_new_tokens):
        found.append(np.where(ended, found[-1], token) if found else token)
        ended |= np.isin(token, ends)
        if ended.all():
            break
    return np.stack(found, axis=1)
