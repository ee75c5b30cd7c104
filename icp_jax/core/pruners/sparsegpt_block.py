"""One block of SparseGPT's walk: choose its mask, then walk its inputs one by one.

An unstructured mask is chosen for the whole block before the walk, an n:m mask group by group
during it. Kept weights may be rounded to a grid on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.backend import current as backend
from icp_jax.core.masks import keep_largest, keep_n_of_m
from icp_jax.core.pruners.triangular import dot, dot_transposed
from icp_jax.core.quantize import Grid, at_input, to_grid

SUB = 16  # inputs per sub-block, whose updates stay in one small panel

Weights = Float[Array, "b o"]
Mask = Bool[Array, "b o"]
OnGrid = Callable[[Float[Array, "o"], Int[Array, ""]], Float[Array, "o"]]  # weights, input


class Goal(NamedTuple):
    """The target of a walk. All but `budget` and `grid` is static."""

    budget: Int[Array, ""]  # zeros in the whole kernel
    grid: Grid | None  # of the kept weights
    pattern: tuple[int, int] | None
    inputs: int  # of the kernel, without padding


def walk_block(
    goal: Goal, w: Weights, u: Float[Array, "b b"], start: Int[Array, ""]
) -> tuple[Weights, Mask, Weights]:
    """Prune the block of inputs that starts at `start`. Returns (weights, keep, errors).

    w: updated with the errors of all earlier inputs. u: the block's diagonal square of U.
    """
    if goal.pattern is None:
        keep = _unstructured(goal, w, u, start)
    else:
        keep = jnp.ones(w.shape, bool)
    grid, inputs = goal.grid, goal.inputs
    rounded = None if grid is None else partial(_rounded, grid, inputs, start)
    return _walk_inside(w, keep, u, goal.pattern, rounded)


def _unstructured(goal: Goal, w: Weights, u: Float[Array, "b b"], start: Int[Array, ""]) -> Mask:
    """Prune the block's share of the budget: the weights with the smallest w²/U_ii²."""
    block, inputs = len(w), goal.inputs
    real = start + jnp.arange(block) < inputs
    scores = jnp.where(real[:, None], _saliency(w, jnp.diagonal(u)), jnp.inf)
    end = jnp.minimum(start + block, inputs)
    count = _share(goal.budget, end, inputs) - _share(goal.budget, start, inputs)
    return keep_largest(scores.reshape(1, -1), count[None]).reshape(w.shape)


def _share(budget: Int[Array, ""], end: Int[Array, ""], inputs: int) -> Int[Array, ""]:
    """floor(budget·end / inputs), inputs < 2¹⁶: budget = a·inputs + r, and r·end fits uint32."""
    end = end.astype(jnp.int32)
    rest = (budget % inputs).astype(jnp.uint32) * end.astype(jnp.uint32) // inputs
    return budget // inputs * end + rest.astype(jnp.int32)


def _saliency(w: Float[Array, "i o"], diagonal: Float[Array, "i"]) -> Float[Array, "i o"]:
    # not squared: same order, and no underflow
    return jnp.abs(w / diagonal[:, None])


def _rounded(grid: Grid, inputs: int, start, now, i):
    """Round the weights of input i of the block at `start` to the grid."""
    return to_grid(now, at_input(grid, start + i, inputs))


def _walk_inside(w: Weights, keep: Mask, u, pattern, on_grid: OnGrid | None):
    """Walk one block in sub-blocks of a few inputs, each updated by one matmul.

    on_grid: rounds the weights of input i of the block; None: no rounding.
    """
    block, outputs = w.shape
    sub = _sub_width(block, pattern)

    def walk_sub(carry, k):
        w, keep, errors = carry
        start = k * sub
        u_rows = jax.lax.dynamic_slice(u, (0, start), (block, sub))
        u1 = jax.lax.dynamic_slice(u_rows, (start, 0), (sub, sub))
        w1 = jax.lax.dynamic_slice(w, (start, 0), (sub, outputs)) - dot_transposed(u_rows, errors)
        keep1 = jax.lax.dynamic_slice(keep, (start, 0), (sub, outputs))
        shifted = None if on_grid is None else lambda now, i: on_grid(now, start + i)
        w1, keep1, errors1 = _walk_inputs(w1, keep1, u1, pattern, shifted)
        w = jax.lax.dynamic_update_slice(w, w1, (start, 0))
        keep = jax.lax.dynamic_update_slice(keep, keep1, (start, 0))
        errors = jax.lax.dynamic_update_slice(errors, errors1, (start, 0))
        return (w, keep, errors), None

    carry = (w, keep, jnp.zeros_like(w))
    return jax.lax.scan(walk_sub, carry, jnp.arange(block // sub))[0]


def _sub_width(block: int, pattern: tuple[int, int] | None) -> int:
    """The largest divisor of the block, up to SUB if possible, that is a multiple of m."""
    group = 1 if pattern is None else pattern[1]
    fits = [s for s in range(group, block + 1, group) if block % s == 0 and s <= max(SUB, group)]
    return fits[-1]


def _walk_inputs(w: Weights, keep: Mask, u, pattern, on_grid: OnGrid | None):
    """Walk one sub-block input by input."""
    diagonal = jnp.diagonal(u)
    sub, outputs = w.shape
    row = partial(jax.lax.dynamic_index_in_dim, keepdims=False)  # unlike w[i], no bounds check
    set_row = jax.lax.dynamic_update_index_in_dim

    def group_mask(w, keep, errors, i):
        n, m = pattern
        u_rows = jax.lax.dynamic_slice(u, (0, i), (sub, m))
        now = jax.lax.dynamic_slice(w, (i, 0), (m, outputs)) - dot(u_rows.T, errors)
        scores = _saliency(now, jax.lax.dynamic_slice(diagonal, (i,), (m,)))
        return jax.lax.dynamic_update_slice(keep, keep_n_of_m(scores, n, m), (i, 0))

    def step(i, carry):
        w, keep, errors = carry
        if pattern is not None:
            keep = jax.lax.cond(
                i % pattern[1] == 0, lambda: group_mask(w, keep, errors, i), lambda: keep
            )
        now = row(w, i) - dot(row(u, i, 1), errors)
        new = now if on_grid is None else on_grid(now, i)
        new = jnp.where(row(keep, i), new, 0.0)
        return set_row(w, new, i, 0), keep, set_row(errors, (now - new) / row(diagonal, i), i, 0)

    # on a GPU each step is a few small kernels, and a loop adds more
    unroll = not backend.is_host()
    return jax.lax.fori_loop(0, sub, step, (w, keep, jnp.zeros_like(w)), unroll=unroll)
