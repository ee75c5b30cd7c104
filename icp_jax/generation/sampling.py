"""The choice of the next token: greedy, or drawn at a temperature from the likeliest tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from icp_jax.arrays import AnyArray
from icp_jax.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises InputError for values out of range.

    temperature: divides the logits; 0: greedy. top_p: draw from the smallest set of likeliest
    tokens whose probabilities sum to at least top_p; 1: all tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be at least 0, and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def kind(self) -> str:
        """What is compiled: `greedy`, `all` or `likeliest`."""
        if self.temperature == 0:
            return "greedy"
        return "all" if self.top_p == 1 else "likeliest"


def row_keys(key: Key[Array, ""], rows: Int[AnyArray, "b"]) -> Key[Array, "b"]:
    """A key for each row, from the row's number: other rows of a batch do not change it."""
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def choose(
    kind: str,
    logits: Float[AnyArray, "b v"],
    keys: Key[AnyArray, "b"],
    step: Int[AnyArray, ""],
    temperature: Float[AnyArray, ""],
    top_p: Float[AnyArray, ""],
) -> Int[Array, "b"]:
    """The next token of each row. kind: see `Sampling.kind`; step: folded into the rows' keys."""
    if kind == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    most = jnp.max(logits, axis=-1, keepdims=True)  # a tiny temperature must not overflow
    scores = (logits - most) / temperature
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    if kind == "likeliest":
        scores = jnp.where(likeliest(jax.nn.softmax(scores, axis=-1), top_p), scores, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)


def likeliest(p: Float[Array, "b v"], top_p: Float[AnyArray, ""]) -> Bool[Array, "b v"]:
    """Which tokens are in the smallest set that holds top_p, with all that are as likely.

    The least probability in the set is bisected on its bits, which are ordered as integers: exact,
    and on a CPU many times faster than a sort of the vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # tokens of at least `low` suffice, of at least `high` do not
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle, p, 0), axis=-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    most = jnp.max(bits, axis=-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(most), most + 1))
    return bits >= low
