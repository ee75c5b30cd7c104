"""Streaming second moments of the taps: what the pruners know of a layer's inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TILE, TILES = 192, 8  # inputs a tile, at least; tiles a side, at most
PANEL = 512  # rows and columns of the moments that are multiplied at once, at most


class Sums(NamedTuple):
    """Running sums of x xᵀ of one tap: the upper half of the symmetric matrix, in tiles."""

    tiles: tuple[Float[Array, "p q"], ...]  # of the first row of tiles, of the second, ...
    rows: Int[Array, ""]  # tokens seen


def _edges(inputs: int) -> list[tuple[int, int]]:
    """(start, end) of every tile of a side."""
    width = max(TILE, -(-inputs // TILES))
    return [(start, min(start + width, inputs)) for start in range(0, inputs, width)]


class Moments(NamedTuple):
    """Second moments of a linear's input."""

    second: Float[Array, "d d"]  # mean of x xᵀ over tokens, float32; its upper half is read
    tokens: Int[Array, ""]


def zeros(inputs: int) -> Sums:
    """Empty sums for a tap of so many inputs."""
    edges, tiles = _edges(inputs), []
    for k, (start, end) in enumerate(edges):
        tiles += [jnp.zeros((end - start, right - left), jnp.float32) for left, right in edges[k:]]
    return Sums(tuple(tiles), jnp.zeros((), jnp.int32))


def add(sums: Sums, x: Float[Array, "n d"], count: Int[Array, ""]) -> Sums:
    """Add rows; `count` of them are real, the others are zero."""
    parts = [x[:, start:end] for start, end in _edges(x.shape[1])]
    pairs = [(left, right) for k, left in enumerate(parts) for right in parts[k:]]
    tiles = [
        tile
        + jax.lax.dot_general(
            left,
            right,
            (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        for tile, (left, right) in zip(sums.tiles, pairs, strict=True)
    ]
    return Sums(tuple(tiles), sums.rows + count)


@jax.jit
def moments(sums: Sums) -> Moments:
    """The upper half of the mean, and zeros below: to transpose it would cost more than to fill."""
    side, tiles = (math.isqrt(8 * len(sums.tiles) + 1) - 1) // 2, iter(sums.tiles)
    edges = _edges(sum(tile.shape[1] for tile in sums.tiles[:side]))
    count = jnp.maximum(sums.rows, 1).astype(jnp.float32)
    second = jnp.zeros((edges[-1][1],) * 2, jnp.float32)
    for k, (top, bottom) in enumerate(edges):
        for left, right in edges[k:]:
            tile = next(tiles) / count
            tile = jnp.triu(tile) if left == top else tile
            second = second.at[top:bottom, left:right].set(tile)
    return Moments(second, sums.rows)


def from_inputs(x: Float[Array, "n d"]) -> Moments:
    """The moments of a matrix of inputs, both halves, at once. For library use."""
    x = jnp.asarray(x)
    count = jnp.int32(x[..., 0].size)
    upper, _ = moments(add(zeros(x.shape[-1]), x.reshape(-1, x.shape[-1]), count))
    return Moments(upper + jnp.triu(upper, 1).T, count)


def outputs_cost_less(tokens: int, inputs: int) -> bool:
    """Whether ‖Wᵀx‖² is less work from a linear's outputs than by `output_energy`."""
    return 2 * tokens <= inputs


@jax.jit
def output_energy(kernel: Float[Array, "i o"], m: Moments) -> Float[Array, ""]:
    """‖Wᵀx‖², in the mean over the calibration tokens."""
    inputs = kernel.shape[0]
    panels = -(-inputs // PANEL)
    panel = -(-inputs // panels)
    upper = jnp.stack(jnp.triu_indices(panels))

    def rows(k):  # (start, kernel); what the panel before holds too is zero
        start = jnp.minimum(k * panel, inputs - panel)
        w = jax.lax.dynamic_slice(kernel, (start, 0), (panel, kernel.shape[1]))
        if inputs % panel:
            w = jnp.where((start + jnp.arange(panel) >= k * panel)[:, None], w, 0)
        return start, w

    def add(n, total):  # the matrix is symmetric: what is right of its diagonal counts twice
        (top, left), (start, right) = rows(upper[0, n]), rows(upper[1, n])
        tile = jax.lax.dynamic_slice(m.second, (top, start), (panel, panel))
        beyond = start - top + jnp.arange(panel) - jnp.arange(panel)[:, None]
        tile = tile * (1 + jnp.sign(beyond)).astype(tile.dtype)
        product = jnp.matmul(tile, right, precision=jax.lax.Precision.HIGHEST)
        return total + jnp.sum(left * product)

    return jax.lax.fori_loop(0, upper.shape[1], add, jnp.zeros((), jnp.float32))


@jax.jit
def output_error(
    before: Float[Array, "i o"],
    after: Float[Array, "i o"],
    m: Moments,
    lost: Float[Array, ""] | None = None,
    total: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """‖(W - Ŵ)ᵀx‖² / ‖Wᵀx‖², in the mean over the calibration tokens.

    lost: the numerator, where the pruner knows it; total: the denominator, over all tokens, where
    it was counted.
    """
    lost = output_energy(before - after, m) if lost is None else lost
    if total is None:
        energy = output_energy(before, m)
    else:
        energy = total / jnp.maximum(m.tokens, 1).astype(jnp.float32)
    return lost / jnp.maximum(energy, jnp.finfo(jnp.float32).tiny)
