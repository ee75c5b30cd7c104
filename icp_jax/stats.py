"""Streaming second moments of the taps: what the pruners know of a layer's inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TILE, TILES = 384, 8  # inputs a tile, at least; tiles a side, at most
PANEL = 1024  # rows of the moments that are multiplied at once, at most


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

    second: Float[Array, "d d"]  # mean of x xᵀ over tokens, float32
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
    """The whole symmetric mean from its upper half."""
    side, tiles = (math.isqrt(8 * len(sums.tiles) + 1) - 1) // 2, iter(sums.tiles)
    upper = {(k, j): next(tiles) for k in range(side) for j in range(k, side)}
    for k in range(side):  # products need not be symmetric to the last bit
        upper[k, k] = jnp.triu(upper[k, k]) + jnp.triu(upper[k, k], 1).T
    second = jnp.block(
        [[upper[k, j] if k <= j else upper[j, k].T for j in range(side)] for k in range(side)]
    )
    return Moments(second / jnp.maximum(sums.rows, 1).astype(jnp.float32), sums.rows)


def from_inputs(x: Float[Array, "n d"]) -> Moments:
    """The moments of a matrix of inputs, at once. For library use."""
    x = jnp.asarray(x)
    return moments(add(zeros(x.shape[-1]), x.reshape(-1, x.shape[-1]), jnp.int32(x[..., 0].size)))


@jax.jit
def output_error(
    before: Float[Array, "i o"], after: Float[Array, "i o"], m: Moments
) -> Float[Array, ""]:
    """‖(W - Ŵ)ᵀx‖² / ‖Wᵀx‖², in the mean over the calibration tokens."""

    inputs = before.shape[0]
    panel = min(PANEL, -(-inputs // 2))

    def energy(w):  # the matrix is symmetric: what is right of its diagonal counts twice
        total = jnp.zeros((), jnp.float32)
        for start in range(0, inputs, panel):
            end = min(start + panel, inputs)
            rows = m.second[start:end, start:]
            rows = jnp.where(jnp.arange(rows.shape[1]) < end - start, rows, 2 * rows)
            product = jnp.matmul(rows, w[start:], precision=jax.lax.Precision.HIGHEST)
            total += jnp.sum(w[start:end] * product)
        return total

    return energy(before - after) / jnp.maximum(energy(before), jnp.finfo(jnp.float32).tiny)
