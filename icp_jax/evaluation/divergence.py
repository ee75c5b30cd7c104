"""How far one model's predictions are from another's, in parts of positions and vocabulary."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.evaluation.output import (
    MANY_ROWS,
    PART,
    Best,
    Layout,
    Part,
    Weights,
    better,
    by_rows,
    logits,
    over_vocabulary,
)


class Seen(NamedTuple):
    """Sums over the vocabulary so far. d, s: the logits of the two models."""

    best: tuple[Best, Best]
    total: Float[Array, "r"]  # log Σ exp(s)
    weight: Float[Array, "r"]  # Σ exp(d - max d)
    gap: Float[Array, "r"]  # Σ exp(d - max d) (d - s)


@partial(jax.jit, static_argnums=(0, 1))
def divergence(
    dense_layout: Layout,
    layout: Layout,
    dense: Weights,
    weights: Weights,
    dense_x: Float[Array, "b t d"],
    x: Float[Array, "b t e"],
    tokens: Int[Array, "b t"],
) -> tuple[Float[Array, "b t-1"], Bool[Array, "b t-1"]]:
    """(KL(dense || model) in nats, whether both have the same most likely token), by position.

    Both vocabularies must be equal. KL = E_d[d - s] - log Σ exp(d) + log Σ exp(s).
    """
    # parts also of a small vocabulary, since several arrays of logits exist at once
    columns = min(dense_layout.columns, layout.columns, PART // (8 * MANY_ROWS))
    of_dense, of_model = (replace(y, columns=columns) for y in (dense_layout, layout))

    def one(dense_x, x, _):
        def add(seen, part):
            d = logits(of_dense, dense, dense_x, part.start)
            s = logits(of_model, weights, x, part.start)
            return _added(seen, d, s, part)

        zero = jnp.zeros(len(x), jnp.float32)
        none = Best(zero - jnp.inf, jnp.zeros(len(x), jnp.int32))
        begin = Seen((none, none), zero - jnp.inf, zero, zero)
        seen = over_vocabulary(of_model, add, begin)
        dense_total = seen.best[0].logit + jnp.log(seen.weight)
        first, second = seen.best
        return seen.gap / seen.weight - dense_total + seen.total, first.token == second.token

    return by_rows(one, min(of_dense.rows, of_model.rows), tokens, dense_x, x)


def _added(seen: Seen, d: jax.Array, s: jax.Array, part: Part) -> Seen:
    """Add a part's logits, save for the tokens that an earlier part had."""
    gap = jnp.where(part.new, d - s, 0)
    d, s = (jnp.where(part.new, y, -jnp.inf) for y in (d, s))
    best = tuple(better(old, y, part.tokens) for old, y in zip(seen.best, (d, s), strict=True))
    peak = best[0].logit
    share, kept = jnp.exp(d - peak[:, None]), jnp.exp(seen.best[0].logit - peak)
    return Seen(
        (best[0], best[1]),
        jnp.logaddexp(seen.total, jax.nn.logsumexp(s, axis=-1)),
        seen.weight * kept + jnp.sum(share, axis=-1),
        seen.gap * kept + jnp.sum(share * gap, axis=-1),
    )
