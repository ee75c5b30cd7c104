"""Streams of hidden states in memory, in chunks of equal shape, and the passes over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.core import passes
from icp_jax.core.hyper import Recipe
from icp_jax.core.passes import Apply, Statistics
from icp_jax.core.stats import share
from icp_jax.models.spec import Family

Params = dict[str, Any]


class Chunks(NamedTuple):
    """Samples `[N, ...]` in chunks of `b`; the last chunk is padded with zeros."""

    values: Float[Array, "c b *s"]
    valid: Int[Array, "c"]  # real samples in each chunk

    def samples(self, count: int) -> Float[Array, "n *s"]:
        """The first `count` samples."""
        return self.values.reshape(-1, *self.values.shape[2:])[:count]


class Streams(NamedTuple):
    """The hidden states of the same samples in the pruned and in the dense model."""

    sparse: Chunks
    dense: Chunks


def start(family: Family, params: Params, samples: AnyArray, recipe: Recipe) -> Streams:
    """Both streams before the first block: the embedding."""
    hidden = passes.embed(family.embed, recipe.stream_dtype, params["embed"], samples)
    chunks = chunked(hidden, recipe.batch)
    return Streams(chunks, chunks)


def chunked(x: Float[AnyArray, "n *s"], size: int) -> Chunks:
    """Split samples into chunks of `size`."""
    n, count = len(x), -(-len(x) // size)
    x = jnp.pad(x, [(0, count * size - n)] + [(0, 0)] * (x.ndim - 1))
    valid = np.minimum(size, n - size * np.arange(count))
    return Chunks(x.reshape(count, size, *x.shape[1:]), jnp.asarray(valid, jnp.int32))


def forward(apply: Apply, params: Params, stream: Chunks) -> Chunks:
    """The block's output for all samples."""
    values = jax.lax.map(lambda at: passes.forward(apply, params, *at)[0], stream)
    return stream._replace(values=values)


def forward_beside(
    apply: Apply, params: Params, stream: Chunks, dense: Chunks
) -> tuple[Chunks, Float[Array, ""], Float[Array, "n *p"]]:
    """(the block's output for all samples, ‖output - dense‖² / ‖dense‖², the same by position).

    The last, of padded samples too.
    """

    def one(at):
        x, beside, valid = at
        return passes.forward_beside(apply, params, x, beside, valid)

    values, found = jax.lax.map(one, (stream.values, dense.values, stream.valid))
    error = share(jnp.sum(found.lost), jnp.sum(found.energy))
    of_tokens = found.of_tokens.reshape(-1, *found.of_tokens.shape[2:])
    return stream._replace(values=values), error, of_tokens


def statistics(
    family: Family, apply: Apply, params: Params, stream: Chunks, samples: int
) -> Statistics:
    """The statistics of a block's linears over all samples."""
    shapes = {spec.name: params[spec.name]["kernel"].shape for spec in family.linears}
    positions = int(np.prod(stream.values.shape[2:-1]))
    empty = passes.no_statistics(family, shapes, samples * positions)

    def add(seen, at):
        x, valid = at
        return passes.collect(apply, params, x, seen, valid), None

    return jax.lax.scan(add, empty, stream)[0]
