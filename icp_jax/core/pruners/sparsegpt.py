"""SparseGPT (Frantar & Alistarh, 2023): prune input by input, spread each error to later inputs.

Kernels are `[in, out]`, so the walk goes along axis 0 ("columns" of the paper's weight matrix).
Let U be the upper Cholesky factor of H⁻¹. Rounding the weight w of input i to q leaves the error
e = (w - q) / U_ii, and each later input j becomes w_j - U_ij·e.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.backend import current as backend
from icp_jax.core.pruners.checked import checked
from icp_jax.core.pruners.hessian import Factor
from icp_jax.core.pruners.sparsegpt_block import Goal, walk_block
from icp_jax.core.pruners.triangular import dot_transposed
from icp_jax.core.quantize import Grid
from icp_jax.core.scaling import TOP, lifted, lower, lowered

BLOCK = 128  # inputs whose mask is chosen together
SPAN = 512  # inputs whose errors are spread together


@checked
@partial(jax.jit, static_argnames=("pattern", "block"))
def sparsegpt(
    kernel: Float[Array, "i o"],
    factor: Factor,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
    grid: Grid | None = None,
    block: int = BLOCK,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """Prune `budget` weights, or to `pattern` (budget unused), and repair the kept ones.

    Unstructured, each block of `block` inputs gets an equal share of the zeros. Within a block
    the weights with the smallest w²/U_ii² are pruned, over all outputs together; ties go to the
    lowest (input, output). The mask of an n:m group is chosen when the walk reaches it. With
    `grid` the same walk rounds the kept weights. All weights of dead inputs are pruned first; if
    they exceed a block's share, more than `budget` are pruned, as in the authors' code.
    Returns (kernel, keep); the kernel is zero where keep is False.
    """
    return _walk(kernel, factor, budget, pattern=pattern, grid=grid, block=block)[:2]


def _walk(
    kernel: Float[Array, "i o"],
    factor: Factor,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
    grid: Grid | None = None,
    block: int = BLOCK,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"], Float[Array, ""]]:
    """`sparsegpt`, and the energy it loses: the mean of ‖(W - Ŵ)ᵀx‖² over the calibration tokens.

    With E the errors of all inputs, W - Ŵ = Uᵀ E and U H Uᵀ = 1. So the loss under H, which is
    2·E[x xᵀ] plus damping, is ‖E‖² and needs no product.
    """
    inputs, outputs = kernel.shape
    chex.assert_shape(factor.upper, (inputs, inputs))
    chex.assert_shape(factor.dead, (inputs,))
    if pattern is not None:
        block = max(block // pattern[1], 1) * pattern[1]  # whole groups
    w, shift = _lifted(kernel, grid)
    w, upper = _padded(jnp.where(factor.dead[:, None], 0.0, w), factor.upper, block)
    goal, squares = Goal(budget, grid, pattern, inputs), partial(_squares, shift)
    (w, errors, moved), keep = _walk_blocks(goal, w, upper, block, squares)
    lost = jnp.maximum(squares(errors) - factor.added * moved, 0) / 2
    keep = keep.reshape(-1, outputs)[:inputs] & ~factor.dead[:, None]
    if shift is not None:
        lost = lower(lost, 2 * (shift - TOP))
    return _lowered(w[:inputs], shift, kernel.dtype), keep, lost


_jit = partial(jax.jit, _walk, static_argnames=("pattern", "block"))
walk, walk_in_place = checked(_jit()), checked(_jit(donate_argnames="kernel"))


class Walked(NamedTuple):
    """The state of a walk."""

    w: Float[Array, "i o"]
    errors: Float[Array, "i o"]  # 0 for inputs not reached yet
    moved: Float[Array, ""]  # ‖W - Ŵ‖² so far


def _walk_blocks(goal, w, upper, block, squares) -> tuple[Walked, Bool[Array, "*k b o"]]:
    """Walk block by block, in spans; the errors of earlier spans reach a span in one product."""
    inputs, outputs = w.shape
    span = _span_width(inputs, block)

    def walk_one(first, before, carry, k):
        w, errors, moved = carry  # of the span that starts at `first`
        at, start = k * block, first + k * block
        u = jax.lax.dynamic_slice(upper, (start, start), (block, block))
        given = jax.lax.dynamic_slice(w, (at, 0), (block, outputs))
        reach = dot_transposed(jax.lax.dynamic_slice(upper, (first, start), (span, block)), errors)
        if before is not None:
            reach = jax.lax.dynamic_slice(before, (at, 0), (block, outputs)) + reach
        w1, keep, errors1 = walk_block(goal, given - reach, u, start)
        w = jax.lax.dynamic_update_slice(w, w1, (at, 0))
        errors = jax.lax.dynamic_update_slice(errors, errors1, (at, 0))
        return Walked(w, errors, moved + squares(given - w1)), keep

    def walk_span(carry, k):
        w, errors, moved = carry
        first = k * span
        before = _reaching(upper, errors, first, span)
        part = jax.lax.dynamic_slice(w, (first, 0), (span, outputs))
        start = Walked(part, jnp.zeros_like(part), moved)
        (part, added, moved), keep = jax.lax.scan(partial(walk_one, first, before), start, blocks)
        w = jax.lax.dynamic_update_slice(w, part, (first, 0))
        return Walked(w, jax.lax.dynamic_update_slice(errors, added, (first, 0)), moved), keep

    blocks, carry = jnp.arange(span // block), Walked(w, jnp.zeros_like(w), jnp.zeros((), w.dtype))
    if span == inputs:
        return jax.lax.scan(partial(walk_one, 0, None), carry, blocks)
    return jax.lax.scan(walk_span, carry, jnp.arange(inputs // span))


def _span_width(inputs: int, block: int) -> int:
    """A multiple of the block near SPAN that divides the inputs; on accelerators, all inputs."""
    if not backend.is_host():  # a loop of dynamic length would wait for the host
        return inputs
    fits = [s for s in range(2 * block, max(SPAN, 2 * block) + 1, block) if inputs % s == 0]
    return fits[-1] if fits else inputs


def _reaching(upper, errors, first, span):
    """Update of the span at `first` from the errors of all earlier inputs, `[span, o]`."""

    def add(k, total):
        u = jax.lax.dynamic_slice(upper, (k * span, first), (span, span))
        part = jax.lax.dynamic_slice(errors, (k * span, 0), (span, errors.shape[1]))
        return total + dot_transposed(u, part)

    nothing = jnp.zeros((span, errors.shape[1]), errors.dtype)
    return jax.lax.fori_loop(0, first // span, add, nothing)


def _padded(w, upper, block):
    """Pad weights with zeros and the factor with ones on the diagonal, to whole blocks."""
    inputs = len(w)
    pad = -inputs % block
    if pad:  # without padding, avoid a copy of the factor
        w = jnp.pad(w, ((0, pad), (0, 0)))
        upper = jnp.pad(upper, ((0, pad), (0, pad)))
        upper = upper + jnp.diag((jnp.arange(inputs + pad) >= inputs).astype(upper.dtype))
    return w, upper


def _lifted(kernel, grid):
    """`lifted`, but with a grid as it is, and its shift None."""
    return lifted(kernel) if grid is None else (kernel.astype(jnp.float32), None)


def _lowered(w, shift, dtype):
    """The inverse of `_lifted`, in the given dtype."""
    return w.astype(dtype) if shift is None else lowered(w, shift, dtype)


def _squares(shift, x):
    """‖x‖²; lifted weights are scaled by 2^-TOP first to avoid overflow."""
    return jnp.sum(jnp.square(x if shift is None else x * 2.0**-TOP))
