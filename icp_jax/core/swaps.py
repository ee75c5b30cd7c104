"""SparseSwaps (2025): improve a mask by swapping a kept weight for a pruned one, output by output.

With r the pruned weights of an output (w where they are pruned, 0 elsewhere) it loses rᵀ H r, if
no kept weight moves. Pruning p and reviving u, with c = H r, changes that by 2 w_p c_p + w_p² H_pp
- 2 w_u c_u + w_u² H_uu - 2 w_p w_u H_pu.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.backend import current as backend
from icp_jax.core.pruners.hessian import damped
from icp_jax.core.stats import Moments

SWAPS = 100  # at most, of an output
SIDE_BY_SIDE = 64  # outputs at once, on accelerators
LEAST = 1e-6  # the least gain of a swap as a share of the loss, above rounding


class State(NamedTuple):
    """One output after some swaps."""

    keep: Bool[Array, "i"]
    reach: Float[Array, "i"]  # c = H r
    done: Bool[Array, ""]
    swapped: Int[Array, ""]  # times


@partial(jax.jit, static_argnames=("pattern", "most"))
def swaps(
    kernel: Float[Array, "i o"],
    keep: Bool[Array, "i o"],
    moments: Moments,
    damping: float | Float[Array, ""] = 0.01,
    *,
    pattern: tuple[int, int] | None = None,
    most: int = SWAPS,
) -> Bool[Array, "i o"]:
    """A mask of the same number of zeros in each output (or group of `pattern`) that loses less.

    kernel: W₀, before pruning. No weight is changed: refit them to the mask afterwards, see
    `refit`. most: swaps of each output. The loss is tr((W - W₀)ᵀ H (W - W₀)) of W₀ with the mask
    applied, with H damped as for SparseGPT; no output's rises.
    """
    h = damped(moments, damping).whole
    group = len(kernel) if pattern is None else pattern[1]
    pairs = _diagonal_blocks(h, group)
    w = kernel.astype(jnp.float32).T
    batch = None if backend.is_host() else SIDE_BY_SIDE
    improve = partial(_of_output, h, pairs, most)
    return jax.lax.map(lambda at: improve(*at), (w, keep.T), batch_size=batch).T


def _diagonal_blocks(h: Float[Array, "i i"], size: int) -> Float[Array, "g m m"]:
    """The squares of H in which a swap may take place."""
    count = len(h) // size
    return jnp.einsum("gmgn->gmn", h.reshape(count, size, count, size))


def _of_output(
    h: Float[Array, "i i"],
    pairs: Float[Array, "g m m"],
    most: int,
    w: Float[Array, "i"],
    keep: Bool[Array, "i"],
) -> Bool[Array, "i"]:
    def loss(mask):
        lost = jnp.where(mask, 0, w)
        reach = jnp.matmul(h, lost, precision=jax.lax.Precision.HIGHEST)
        return reach, jnp.sum(lost * reach)

    reach, before = loss(keep)
    least = LEAST * before

    def swap(s: State) -> State:
        change, gone, back = best_swap(w, s.keep, s.reach, pairs)
        gains = change < -least
        mask = s.keep.at[gone].set(False).at[back].set(True)
        moved = s.reach + w[gone] * h[gone] - w[back] * h[back]
        return State(
            jnp.where(gains, mask, s.keep), jnp.where(gains, moved, s.reach), ~gains, s.swapped + 1
        )

    start = State(keep, reach, jnp.asarray(False), jnp.int32(0))
    found = jax.lax.while_loop(lambda s: ~s.done & (s.swapped < most), swap, start).keep
    return jnp.where(loss(found)[1] < before, found, keep)


def best_swap(
    w: Float[Array, "i"],
    keep: Bool[Array, "i"],
    reach: Float[Array, "i"],
    pairs: Float[Array, "g m m"],
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """(change of the loss, input to prune, input to revive) of the best swap of one output.

    reach: H r. pairs: the diagonal blocks of H in which a swap may take place.
    """
    groups, size = pairs.shape[:2]
    squares = jnp.square(w) * jnp.einsum("gmm->gm", pairs).reshape(-1)
    prune = jnp.where(keep, 2 * w * reach + squares, jnp.inf).reshape(groups, size, 1)
    revive = jnp.where(keep, jnp.inf, squares - 2 * w * reach).reshape(groups, 1, size)
    grouped = w.reshape(groups, size)
    change = prune + revive - 2 * grouped[:, :, None] * grouped[:, None] * pairs
    at = jnp.argmin(change)
    group, gone, back = jnp.unravel_index(at, change.shape)
    return change.reshape(-1)[at], group * size + gone, group * size + back
