"""KL(dense || pruned) of the next-token predictions, from the hidden states after the last block.

The logits `[t, V]` of a window never exist as a whole, nor does their gradient: some positions at a
time have all of theirs, and the gradient computes them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.backend.products import full_precision
from icp_jax.models.spec import Family

ROWS, BYTES = 128, 1 << 26  # most positions at once, and most bytes of their logits


class Weights(NamedTuple):
    """The params of an output layer. table: the tied `[V, E]` embedding, or None."""

    params: Any
    table: Any


def weights(family: Family, embed: Mapping[str, Any], head: Mapping[str, Any]) -> Weights:
    """The output layer of a model, from the params of its embedding and head."""
    return Weights(dict(head), family.head_table(embed))


def logits(module: Any, given: Weights, x: Float[AnyArray, "*b d"]) -> Float[Array, "*b v"]:
    """Logits of hidden states, in float32."""
    with full_precision("float32"):
        found = module.apply({"params": given.params}, x, given.table)
    return found.astype(jnp.float32)


def mean_kl(
    module: Any,
    pruned: Weights,
    dense: Weights,
    x: Float[AnyArray, "t d"],
    target: Float[AnyArray, "t d"],
) -> Float[Array, ""]:
    """KL(dense || pruned) in nats, the mean over all positions of one window.

    module: the head of the family. x, target: the hidden states of the pruned and of the dense
    model after their last blocks.
    """
    length = x.shape[0]
    vocabulary = jax.eval_shape(lambda row: logits(module, pruned, row), x[:1]).shape[-1]
    rows = max(1, min(length, ROWS, BYTES // (4 * vocabulary)))
    pad = -length % rows
    real = (jnp.arange(length + pad) < length).reshape(-1, rows)
    parts = [jnp.pad(y, ((0, pad), (0, 0))).reshape(-1, rows, y.shape[-1]) for y in (x, target)]

    @jax.checkpoint
    def lost(x: Array, target: Array, real: Array) -> Array:
        s, d = (
            jax.nn.log_softmax(logits(module, of, y)) for of, y in ((pruned, x), (dense, target))
        )
        return jnp.sum(jnp.where(real, jnp.sum(jnp.exp(d) * (d - s), axis=-1), 0))

    sums = jax.lax.map(lambda part: lost(*part), (*parts, real))
    return jnp.sum(sums) / jnp.float32(length)
