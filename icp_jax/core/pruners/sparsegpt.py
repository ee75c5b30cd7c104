"""SparseGPT (Frantar & Alistarh, 2023): prune along the inputs, spread each error to the rest.

Kernels are `[in, out]`, so the walk goes down axis 0 ("columns" of the paper's weight matrix).
With U the upper Cholesky factor of H⁻¹, pruning input i of value w to q leaves the error
e = (w - q) / U_ii, and every later input j becomes w_j - U_ij·e.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax import backend
from icp_jax.core.masks import keep_largest, keep_n_of_m
from icp_jax.core.pruners.checked import checked
from icp_jax.core.pruners.triangular import dot, dot_transposed, inverse_upper
from icp_jax.core.quantize import Grid, at_input, to_grid
from icp_jax.core.scaling import TOP, lift, lower
from icp_jax.core.stats import Moments

BLOCK = 128  # inputs whose mask is chosen together
SUB = 16  # inputs whose updates stay inside one small panel
SPAN = 512  # inputs whose errors are spread at once


class Factor(NamedTuple):
    """What one input has in common for all linears that read it."""

    upper: Float[Array, "i i"]  # U with H⁻¹ = Uᵀ U
    dead: Bool[Array, "i"]  # inputs that were always zero
    added: Float[Array, ""]  # to the diagonal of H


@jax.jit
def factor(moments: Moments, damping: float | Float[Array, ""] = 0.01) -> Factor:
    """U of H = 2·E[x xᵀ], damped by `damping` times its mean diagonal.

    Not-a-number in `upper` means that H was not positive definite.
    """
    size = moments.second.shape[0]
    chex.assert_shape(moments.second, (size, size))
    h = 2.0 * moments.second
    diagonal = jnp.diagonal(h)
    dead = diagonal == 0
    diagonal = jnp.where(dead, 1.0, diagonal)
    added = jnp.asarray(damping, h.dtype) * jnp.mean(diagonal)
    h = jnp.where(jnp.eye(size, dtype=bool), (diagonal + added)[:, None], jnp.triu(h))
    # batched Choleskys of one program can wait for each other for ever on the CPU
    invert = (
        jax.custom_batching.sequential_vmap(inverse_upper) if backend.is_host() else inverse_upper
    )
    return Factor(invert(h), dead, added)


def _share(budget: Int[Array, ""], end: Int[Array, ""], inputs: int) -> Int[Array, ""]:
    """floor(budget·end / inputs), inputs < 2¹⁶: budget = a·inputs + r, and r·end fits uint32."""
    end = end.astype(jnp.int32)
    rest = (budget % inputs).astype(jnp.uint32) * end.astype(jnp.uint32) // inputs
    return budget // inputs * end + rest.astype(jnp.int32)


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
    """Prune `budget` weights (or to `pattern`, budget unused) and repair the kept ones.

    Unstructured, the zeros go to the blocks of `block` inputs in equal shares; inside a block
    those of the smallest w²/U_ii² go, over all outputs at once, ties to the lowest (input,
    output). n:m groups are decided when the walk reaches them. With `grid` the kept weights are
    rounded to it in the same walk. All weights of dead inputs go: they are the first of their
    block's share, and where they are more than that, more than `budget` go, as in the authors'
    code. Returns (kernel, keep); the kernel is zero where keep is not.
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
    """`sparsegpt`, and what it lost: ‖(W - Ŵ)ᵀx‖², in the mean over the calibration tokens.

    W - Ŵ = Uᵀ E, with E the errors of all inputs, and U H Uᵀ = 1: so the loss under H, which is
    2·E[x xᵀ] and what damping added to its diagonal, is ‖E‖², and costs no product.
    """
    inputs, outputs = kernel.shape
    chex.assert_shape(factor.upper, (inputs, inputs))
    chex.assert_shape(factor.dead, (inputs,))
    if pattern is not None:
        block = max(block // pattern[1], 1) * pattern[1]  # whole groups
    sub = _sub_width(block, pattern)
    pad = -inputs % block
    w, shift = _lifted(kernel, grid)
    w, upper = jnp.where(factor.dead[:, None], 0.0, w), factor.upper
    if pad:  # else no copy of what may be the largest matrix of all
        w = jnp.pad(w, ((0, pad), (0, 0)))
        upper = jnp.pad(upper, ((0, pad), (0, pad)))
        upper = upper + jnp.diag((jnp.arange(inputs + pad) >= inputs).astype(upper.dtype))
    span = _span_width(inputs + pad, block)

    def walk_block(first, before, carry, k):
        w, errors, moved = carry  # of the span from `first`; errors of blocks to come are 0
        at, start = k * block, first + k * block
        u = jax.lax.dynamic_slice(upper, (start, start), (block, block))
        given = jax.lax.dynamic_slice(w, (at, 0), (block, outputs))
        reach = dot_transposed(jax.lax.dynamic_slice(upper, (first, start), (span, block)), errors)
        if before is not None:
            reach = jax.lax.dynamic_slice(before, (at, 0), (block, outputs)) + reach
        w1 = given - reach
        if pattern is None:
            real = start + jnp.arange(block) < inputs
            scores = jnp.where(real[:, None], _saliency(w1, jnp.diagonal(u)), jnp.inf)
            end = jnp.minimum(start + block, inputs)
            count = _share(budget, end, inputs) - _share(budget, start, inputs)
            keep = keep_largest(scores.reshape(1, -1), count[None]).reshape(block, outputs)
        else:
            keep = jnp.ones((block, outputs), bool)
        on_grid = (
            None if grid is None else lambda now, i: to_grid(now, at_input(grid, start + i, inputs))
        )
        w1, keep, errors1 = _walk_inside(w1, keep, u, pattern, on_grid, sub)
        w = jax.lax.dynamic_update_slice(w, w1, (at, 0))
        errors = jax.lax.dynamic_update_slice(errors, errors1, (at, 0))
        return (w, errors, moved + squares(given - w1)), keep

    def walk_span(carry, k):  # of the spans before only the errors matter, and those all at once
        w, errors, moved = carry
        first = k * span
        before = _reaching(upper, errors, first, span)
        part = jax.lax.dynamic_slice(w, (first, 0), (span, outputs))
        start = part, jnp.zeros_like(part), moved
        (part, found, moved), keep = jax.lax.scan(partial(walk_block, first, before), start, blocks)
        w = jax.lax.dynamic_update_slice(w, part, (first, 0))
        return (w, jax.lax.dynamic_update_slice(errors, found, (first, 0)), moved), keep

    def squares(x):  # of the weights as they were given, but for a power of two
        return jnp.sum(jnp.square(x if shift is None else x * 2.0**-TOP))

    blocks, carry = jnp.arange(span // block), (w, jnp.zeros_like(w), jnp.zeros((), w.dtype))
    if span == inputs + pad:
        (w, errors, moved), keep = jax.lax.scan(partial(walk_block, 0, None), carry, blocks)
    else:
        spans = jnp.arange((inputs + pad) // span)
        (w, errors, moved), keep = jax.lax.scan(walk_span, carry, spans)
    lost = jnp.maximum(squares(errors) - factor.added * moved, 0) / 2
    keep = keep.reshape(-1, outputs)[:inputs] & ~factor.dead[:, None]
    if shift is not None:
        lost = lower(lost, 2 * (shift - TOP))
    return _lowered(w[:inputs], shift, kernel.dtype), keep, lost


_jit = partial(jax.jit, _walk, static_argnames=("pattern", "block"))
walk, walk_in_place = checked(_jit()), checked(_jit(donate_argnames="kernel"))


def _lifted(kernel, grid):
    """The kernel in float32 and how it was lifted: None with a grid, whose units it then keeps."""
    wide = kernel.astype(jnp.float32) if kernel.dtype.itemsize < 4 else kernel
    w, shift = lift(wide) if grid is None else (wide, None)
    return w.astype(jnp.float32), shift


def _lowered(w, shift, dtype):
    """What `_lifted` was given, with what became of it, in its dtype."""
    wide = w.astype(dtype) if dtype.itemsize > 4 else w
    return (wide if shift is None else lower(wide, shift)).astype(dtype)


def _span_width(inputs: int, block: int) -> int:
    """A multiple of the block near SPAN that divides the inputs; off the CPU all of them."""
    if not backend.is_host():  # a loop of unknown length waits for the host
        return inputs
    fits = [s for s in range(2 * block, max(SPAN, 2 * block) + 1, block) if inputs % s == 0]
    return fits[-1] if fits else inputs


def _reaching(upper, errors, first, span):
    """What the errors of the inputs before `first` come to in the span there, `[span, o]`."""

    def add(k, total):
        u = jax.lax.dynamic_slice(upper, (k * span, first), (span, span))
        part = jax.lax.dynamic_slice(errors, (k * span, 0), (span, errors.shape[1]))
        return total + dot_transposed(u, part)

    nothing = jnp.zeros((span, errors.shape[1]), errors.dtype)
    return jax.lax.fori_loop(0, first // span, add, nothing)


def _sub_width(block: int, pattern: tuple[int, int] | None) -> int:
    """The largest divisor of the block near SUB that holds whole groups."""
    group = 1 if pattern is None else pattern[1]
    fits = [s for s in range(group, block + 1, group) if block % s == 0 and s <= max(SUB, group)]
    return fits[-1]


def _saliency(w: Float[Array, "i o"], diagonal: Float[Array, "i"]) -> Float[Array, "i o"]:
    # not squared: the order is the same, and small ones stay apart
    return jnp.abs(w / diagonal[:, None])


def _walk_inside(w, keep, u, pattern, on_grid, sub):
    """One block: sub-blocks of `sub` inputs, each brought up to date by one matmul.

    on_grid: rounds the weights of input i of the block, or None.
    """
    block, outputs = w.shape

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


def _walk_inputs(w, keep, u, pattern, on_grid):
    """One sub-block, input by input."""
    diagonal = jnp.diagonal(u)
    sub, outputs = w.shape
    row = partial(jax.lax.dynamic_index_in_dim, keepdims=False)  # indexing would check the bounds
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

    # each step is a few small kernels to a GPU, and a loop around them some more
    unroll = not backend.is_host()
    return jax.lax.fori_loop(0, sub, step, (w, keep, jnp.zeros_like(w)), unroll=unroll)
