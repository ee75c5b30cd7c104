"""A model's output layer, applied to parts of the positions and of the vocabulary.

The logits `[positions, V]` of a window never exist as a whole. Where the vocabulary is small, some
positions at a time have all their logits. Otherwise parts of the vocabulary follow one another, and
what they add up to is carried along. The table `[V, D]` itself is whole on the device, as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icp_jax.backend.products import full_precision
from icp_jax.core.passes import Params
from icp_jax.models.spec import Family
from icp_jax.streaming.passes import to_device

SMALL = 1 << 26  # bytes of logits, and of a float32 table, that are in memory at once
PART = 1 << 24  # the same, where the vocabulary is in parts
ROWS, MANY_ROWS = 256, 1024  # positions at once: with the whole vocabulary, and with a part of it


@dataclass(frozen=True)
class Layout:
    """How an output layer is applied, as a static argument. columns: tokens of a part."""

    head: Any  # a Flax module
    dtype: str
    vocabulary: int
    columns: int

    @property
    def whole(self) -> bool:
        """Whether the vocabulary is in one part."""
        return self.columns == self.vocabulary

    @property
    def rows(self) -> int:
        """Positions at once."""
        return ROWS if self.whole else MANY_ROWS


class Weights(NamedTuple):
    """The params of the head; its table `[V, E]`, or None if it is the kernel in the params.

    A bfloat16 table that is used in parts is held as uint16: XLA on the CPU would widen all of it.
    """

    params: Params
    table: Array | None


def columns(vocabulary: int, width: int) -> int:
    """Tokens of the vocabulary at once, so that the logits and the float32 table stay small."""
    if 4 * vocabulary * max(ROWS, width) <= SMALL:
        return vocabulary
    return max(1, min(vocabulary, PART // (4 * max(MANY_ROWS, width))))


def of(
    family: Family, embed: Mapping[str, Any], head: Mapping[str, Any], dtype: str
) -> tuple[Layout, Weights]:
    """The output layer of a model, on the device."""
    table = family.head_table(embed)
    kernel = None if family.tied else head["lm_head"]["kernel"]
    vocabulary, width = table.shape if kernel is None else kernel.shape[::-1]
    layout = Layout(family.head, dtype, vocabulary, columns(vocabulary, width))
    if kernel is not None and not layout.whole:
        head, table = {name: head[name] for name in head if name != "lm_head"}, kernel.T
    if not layout.whole and table.dtype == jnp.bfloat16:
        table = np.asarray(table).view(np.uint16)  # see Weights
    return layout, Weights(to_device(dict(head)), None if table is None else jax.device_put(table))


def logits(
    layout: Layout, weights: Weights, x: Float[Array, "r d"], start: Int[Array, ""]
) -> Float[Array, "r c"]:
    """The float32 logits of `columns` tokens from `start`."""
    table, size = weights.table, layout.columns
    if not layout.whole and table is not None:
        table = jax.lax.dynamic_slice_in_dim(table, start, size)
    elif not layout.whole:
        kernel = weights.params["lm_head"]["kernel"]
        table = jax.lax.dynamic_slice_in_dim(kernel, start, size, axis=1).T
    if table is not None and table.dtype == jnp.uint16:
        table = jax.lax.bitcast_convert_type(table, jnp.bfloat16)
    with full_precision(layout.dtype):
        found = layout.head.apply({"params": weights.params}, x.astype(layout.dtype), table)
    return found.astype(jnp.float32)


class Part(NamedTuple):
    """A part of the vocabulary: its tokens, and which of them no earlier part had."""

    start: Int[Array, ""]
    tokens: Int[Array, "c"]
    new: Bool[Array, "c"]


class Best(NamedTuple):
    """The most likely token so far, the first of equals."""

    logit: Float[Array, "r"]
    token: Int[Array, "r"]


def better(best: Best, found: Float[Array, "r c"], tokens: Int[Array, "c"]) -> Best:
    """The better of the best token so far and of a part's, for every position."""
    logit, token = jnp.max(found, axis=-1), tokens[jnp.argmax(found, axis=-1)]
    return Best(jnp.maximum(logit, best.logit), jnp.where(logit > best.logit, token, best.token))


def over_vocabulary(layout: Layout, add: Any, begin: Any) -> Any:
    """`carry = add(carry, Part)` for every part, from `begin`. All parts have one length."""

    def step(carry, first):
        start = jnp.minimum(first, layout.vocabulary - layout.columns)
        tokens = start + jnp.arange(layout.columns, dtype=jnp.int32)
        return add(carry, Part(start, tokens, tokens >= first)), None

    firsts = jnp.arange(0, layout.vocabulary, layout.columns, dtype=jnp.int32)
    return jax.lax.scan(step, begin, firsts)[0]


def by_rows(f: Any, rows: int, tokens: Int[Array, "b t"], *hidden: Float[Array, "b t _"]) -> Any:
    """`f(*hidden, next token)` for parts of `rows` positions; its results as `[b, t - 1]`."""
    batch, length = tokens.shape
    rows = min(rows, length)
    pad = -length % rows
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, pad + 1)))
    padded = [jnp.pad(x, ((0, 0), (0, pad), (0, 0))) for x in hidden]
    parts = [x.reshape(-1, rows, x.shape[-1]) for x in padded]
    found = jax.lax.map(lambda part: f(*part), (*parts, following.reshape(-1, rows)))
    return jax.tree.map(lambda y: y.reshape(batch, length + pad)[:, : length - 1], found)


@partial(jax.jit, static_argnums=0)
def losses(
    layout: Layout, weights: Weights, x: Float[Array, "b t d"], tokens: Int[Array, "b t"]
) -> tuple[Float[Array, "b"], Float[Array, "b t-1"]]:
    """Negative log-likelihood of the next tokens, in nats: summed over each window, and of each."""

    def of_all(x, target):
        found = logits(layout, weights, x, jnp.int32(0))
        chosen = jnp.take_along_axis(found, target[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(found, axis=-1) - chosen

    def in_parts(x, target):
        def add(carry, part):
            total, chosen = carry
            found = jnp.where(part.new, logits(layout, weights, x, part.start), -jnp.inf)
            here = part.new & (part.tokens == target[:, None])
            chosen += jnp.sum(jnp.where(here, found, 0), axis=-1)
            return jnp.logaddexp(total, jax.nn.logsumexp(found, axis=-1)), chosen

        zero = jnp.zeros(len(x), jnp.float32)
        total, chosen = over_vocabulary(layout, add, (zero - jnp.inf, zero))
        return total - chosen

    found = by_rows(of_all if layout.whole else in_parts, layout.rows, tokens, x)
    return jnp.sum(found, axis=1), found


@partial(jax.jit, static_argnums=0)
def scores(
    layout: Layout, weights: Weights, x: Float[Array, "r d"], target: Int[Array, "r"]
) -> tuple[Float[Array, "r"], Bool[Array, "r"]]:
    """(log-probability in nats, whether it is the most likely token) of one token a position."""

    def add(carry, part):
        total, chosen, best = carry
        found = jnp.where(part.new, logits(layout, weights, x, part.start), -jnp.inf)
        here = part.new & (part.tokens == target[:, None])
        chosen += jnp.sum(jnp.where(here, found, 0), axis=-1)
        total = jnp.logaddexp(total, jax.nn.logsumexp(found, axis=-1))
        return total, chosen, better(best, found, part.tokens)

    zero = jnp.zeros(len(x), jnp.float32)
    none = Best(zero - jnp.inf, jnp.zeros(len(x), jnp.int32))
    total, chosen, best = over_vocabulary(layout, add, (zero - jnp.inf, zero, none))
    return chosen - total, best.token == target
