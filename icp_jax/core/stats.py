"""Streaming second moments of the taps: the pruners' statistics of a layer's inputs."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend import current as backend

TILE, TILE_MAX = 256, 512  # inputs per tile of the moments, on the CPU
SIDE, SIDE_LEAST = 8, 1024  # elsewhere: tiles per side, and the smallest number of inputs of one
PANEL = 512  # largest panel of the moments that is multiplied at once


class Sums(NamedTuple):
    """Running sums of one tap."""

    second: Float[Array, "d d"]  # sum of x xᵀ, upper half only
    rows: Int[Array, ""]  # tokens seen


class Moments(NamedTuple):
    """Second moments of a linear's input."""

    second: Float[Array, "d d"]  # mean of x xᵀ over tokens, float32; only the upper half is read
    tokens: Int[Array, ""]


def zeros(inputs: int) -> Sums:
    """Empty sums for a tap with this number of inputs."""
    return Sums(jnp.zeros((inputs, inputs), jnp.float32), jnp.zeros((), jnp.int32))


def _tile(inputs: int) -> int:
    if backend.is_host():
        return min(inputs, max(TILE, min(TILE_MAX, inputs // 4)))
    return min(inputs, max(SIDE_LEAST, -(-inputs // SIDE)))


def add(sums: Sums, x: Float[Array, "n d"], count: Int[Array, ""]) -> Sums:
    """Add rows, of which `count` are real and the others zero.

    Updates the upper half in place, one tile at a time.
    """
    if backend.is_host():  # the CPU has no bfloat16 product that sums in float32
        x = x.astype(jnp.float32)
    (tokens, inputs), columns = x.shape, x.T
    tile = _tile(inputs)
    pairs = jnp.stack(jnp.triu_indices(-(-inputs // tile)))

    def columns_of(k):  # (start, columns); the last tile overlaps, with zeros in the overlap
        start = jnp.minimum(k * tile, inputs - tile)
        part = jax.lax.dynamic_slice(columns, (start, 0), (tile, tokens))
        if inputs % tile:
            part = jnp.where((start + jnp.arange(tile) >= k * tile)[:, None], part, 0)
        return start, part

    def add_tile(k, second):
        (top, left), (start, right) = columns_of(pairs[0, k]), columns_of(pairs[1, k])
        product = jax.lax.dot_general(
            left,
            right,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        before = jax.lax.dynamic_slice(second, (top, start), (tile, tile))
        return jax.lax.dynamic_update_slice(second, before + product, (top, start))

    second = jax.lax.fori_loop(0, pairs.shape[1], add_tile, sums.second)
    return Sums(second, sums.rows + count)


@partial(jax.jit, donate_argnums=0)
def moments(sums: Sums) -> Moments:
    """The mean. The sums are donated."""
    return Moments(sums.second / jnp.maximum(sums.rows, 1).astype(jnp.float32), sums.rows)


def from_inputs(x: Float[AnyArray, "*n d"]) -> Moments:
    """Moments of a matrix of inputs, with both halves filled in. For library use."""
    x = jnp.asarray(x)
    count = jnp.int32(x[..., 0].size)
    upper, _ = moments(add(zeros(x.shape[-1]), x.reshape(-1, x.shape[-1]), count))
    return Moments(jnp.triu(upper) + jnp.triu(upper, 1).T, count)


def outputs_cost_less(tokens: int, inputs: int) -> bool:
    """Whether ‖Wᵀx‖² is cheaper from a linear's outputs than by `output_energy`."""
    return 2 * tokens <= inputs


@jax.jit
def output_energy(kernel: Float[Array, "i o"], m: Moments) -> Float[Array, ""]:
    """Mean of ‖Wᵀx‖² over the calibration tokens."""
    inputs = kernel.shape[0]
    panels = -(-inputs // PANEL)
    panel = -(-inputs // panels)
    upper = jnp.stack(jnp.triu_indices(panels))

    def rows(k):  # (start, kernel); the last panel overlaps, with zeros in the overlap
        start = jnp.minimum(k * panel, inputs - panel)
        w = jax.lax.dynamic_slice(kernel, (start, 0), (panel, kernel.shape[1]))
        if inputs % panel:
            w = jnp.where((start + jnp.arange(panel) >= k * panel)[:, None], w, 0)
        return start, w

    def add(n, total):  # by symmetry, entries right of the diagonal count twice
        (top, left), (start, right) = rows(upper[0, n]), rows(upper[1, n])
        tile = jax.lax.dynamic_slice(m.second, (top, start), (panel, panel))
        beyond = start - top + jnp.arange(panel) - jnp.arange(panel)[:, None]
        tile = tile * (1 + jnp.sign(beyond)).astype(tile.dtype)
        product = jnp.matmul(tile, right, precision=jax.lax.Precision.HIGHEST)
        return total + jnp.sum(left * product)

    return jax.lax.fori_loop(0, upper.shape[1], add, jnp.zeros((), jnp.float32))


@jax.jit
def lost_energy(
    before: Float[Array, "i o"], after: Float[Array, "i o"], m: Moments
) -> Float[Array, ""]:
    """Mean of ‖(W - Ŵ)ᵀx‖² over the calibration tokens."""
    return output_energy(before - after, m)


@jax.jit
def energy(
    kernel: Float[Array, "i o"], m: Moments, total: Float[Array, ""] | None = None
) -> Float[Array, ""]:
    """`output_energy`, taken from its `total` over all tokens if that is known."""
    if total is None:
        return output_energy(kernel, m)
    return total / jnp.maximum(m.tokens, 1).astype(jnp.float32)


@jax.jit
def share(lost: Float[Array, "*b"], energy: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """lost / energy; the energy may be zero."""
    return lost / jnp.maximum(energy, jnp.finfo(jnp.float32).tiny)


def output_error(
    before: Float[AnyArray, "i o"], after: Float[AnyArray, "i o"], m: Moments
) -> Float[Array, ""]:
    """‖(W - Ŵ)ᵀx‖² / ‖Wᵀx‖² over the calibration tokens. For library use."""
    return share(lost_energy(before, after, m), energy(before, m))
