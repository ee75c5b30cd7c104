"""Integer grids for the kept weights, computed from the weights before pruning.

There is one grid per output channel, or per group of its inputs. It always contains zero, so
pruned weights stay exactly zero.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SHRINKS = 40  # steps of a search, from the full range down to half of it


class Grid(NamedTuple):
    """value = scale · (q - zero) with q in 0..levels; g groups of inputs, o output channels."""

    scale: Float[Array, "g o"]
    zero: Float[Array, "g o"]  # an integer level
    levels: Int[Array, ""]  # the highest level, 2^bits - 1


@partial(jax.jit, static_argnames=("group", "symmetric", "search", "dtype"))
def make_grid(
    kernel: Float[Array, "i o"],
    bits: int | Int[Array, ""],
    *,
    group: int | None = None,
    symmetric: bool = False,
    search: bool = False,
    importance: Float[Array, "i"] | None = None,
    dtype: str = "float32",
) -> Grid:
    """The grid of each output channel, or of each `group` of its inputs.

    The range is min-max. With `search` it is shrunk, by up to a half, to minimise the rounding
    error weighted by `importance` (the inputs' second moments). symmetric: zero is the middle
    level. dtype: scales are rounded to it, so that a file can store them exactly.
    """
    (inputs, outputs), held = kernel.shape, jnp.finfo(dtype)
    w = kernel.reshape(-1, group or inputs, outputs).astype(jnp.float32)
    levels = jnp.left_shift(jnp.int32(1), jnp.asarray(bits, jnp.int32)) - 1
    low, high = jnp.minimum(w.min(axis=1), 0.0), jnp.maximum(w.max(axis=1), 0.0)
    if symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    empty = high <= low
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)

    def grid(shrink) -> Grid:
        steps = levels.astype(jnp.float32)
        scale = (high - low) * shrink / steps
        # XLA may drop a pair of conversions; flushing subnormals to zero is harmless here
        scale = jax.lax.reduce_precision(scale, held.nexp, held.nmant)
        scale = jnp.maximum(scale, held.tiny.astype(jnp.float32))
        middle = jnp.full_like(scale, 0.5) * (steps + 1.0)
        zero = middle if symmetric else jnp.clip(jnp.round(-low * shrink / scale), 0.0, steps)
        return Grid(scale, zero, levels)

    if not search:
        return grid(1.0)
    weight = jnp.ones(inputs) if importance is None else importance
    weight = weight.astype(jnp.float32)
    weight = weight.reshape(-1, group or inputs, 1)

    def better(k, best):
        error, shrink = best
        now = 1.0 - 0.5 * k.astype(jnp.float32) / SHRINKS
        tried = grid(now)
        rounded = to_grid(w, Grid(tried.scale[:, None], tried.zero[:, None], levels))
        tried_error = jnp.sum(weight * jnp.square(w - rounded), axis=1)
        return jnp.minimum(tried_error, error), jnp.where(tried_error < error, now, shrink)

    start = (jnp.full_like(low, jnp.inf), jnp.ones_like(low))
    return grid(jax.lax.fori_loop(0, SHRINKS + 1, better, start)[1])


def to_level(w: Float[Array, "*s"], grid: Grid) -> Float[Array, "*s"]:
    """Nearest level of w; w and the grid's fields must broadcast."""
    level = jnp.round(w / grid.scale) + grid.zero
    return jnp.clip(level, 0.0, grid.levels.astype(w.dtype))


def to_grid(w: Float[Array, "*s"], grid: Grid) -> Float[Array, "*s"]:
    """Nearest grid value of w; w and the grid's fields must broadcast."""
    return grid.scale * (to_level(w, grid) - grid.zero)


def at_input(grid: Grid, i: Int[Array, ""], inputs: int) -> Grid:
    """The grid `[o]` of input i, for a kernel with this number of inputs."""
    group = inputs // grid.scale.shape[0]
    row = jnp.minimum(i // group, grid.scale.shape[0] - 1)  # padded inputs come last
    return Grid(grid.scale[row], grid.zero[row], grid.levels)


@jax.jit
def round_kernel(kernel: Float[Array, "i o"], keep: Array, grid: Grid) -> Float[Array, "i o"]:
    """Round the kept weights to the grid, without repair. For methods that do not walk."""
    group = kernel.shape[0] // grid.scale.shape[0]
    scale, zero = (jnp.repeat(a, group, axis=0) for a in (grid.scale, grid.zero))
    return jnp.where(keep, to_grid(kernel, Grid(scale, zero, grid.levels)), 0.0)
