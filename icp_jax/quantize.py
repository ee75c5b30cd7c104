"""Integer grids per output channel, from the weights before pruning.

A grid always contains zero, so that a pruned weight stays exactly zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Grid(NamedTuple):
    """value = scale · (q - zero), q in 0..levels."""

    scale: Float[Array, "o"]
    zero: Float[Array, "o"]  # an integer level
    levels: Int[Array, ""]  # the highest level, 2^bits - 1


def minmax_grid(kernel: Float[Array, "i o"], bits: int | Int[Array, ""]) -> Grid:
    """The asymmetric min-max grid of every output channel of `kernel`."""
    levels = jnp.left_shift(jnp.asarray(1, jnp.int32), jnp.asarray(bits, jnp.int32)) - 1
    low = jnp.minimum(kernel.min(axis=0), 0.0)
    high = jnp.maximum(kernel.max(axis=0), 0.0)
    empty = high <= low
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)
    scale = (high - low) / levels.astype(kernel.dtype)
    return Grid(scale, jnp.round(-low / scale), levels)


@jax.jit
def to_grid(w: Float[Array, "*i o"], grid: Grid) -> Float[Array, "*i o"]:
    """The nearest value of the grid."""
    level = jnp.round(w / grid.scale) + grid.zero
    level = jnp.clip(level, 0.0, grid.levels.astype(w.dtype))
    return grid.scale * (level - grid.zero)
