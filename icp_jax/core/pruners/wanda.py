"""Wanda (Sun et al., 2023): prune the smallest |w|·‖x‖₂ of each output, without repair."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.core.masks import keep_largest, keep_n_of_m
from icp_jax.core.pruners.checked import checked
from icp_jax.core.scaling import lift
from icp_jax.core.stats import Moments


@checked
@partial(jax.jit, static_argnames=("pattern",))
def wanda(
    kernel: Float[Array, "i o"],
    stats: Moments,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """Prune `budget` weights, an equal share per output, or to `pattern`. Returns (kernel, keep).

    Weights are compared within an output: a row of the paper's weight matrix, a column of the
    kernel. The first outputs lose one more if the budget does not divide evenly. Ties go to the
    lowest input.
    """
    inputs, outputs = kernel.shape
    chex.assert_shape(stats.second, (inputs, inputs))
    w = kernel.astype(jnp.float32) if kernel.dtype.itemsize < 4 else kernel
    squares, _ = lift(jnp.diagonal(stats.second))
    scores = lift(w)[0] * jnp.sqrt(squares).astype(w.dtype)[:, None]
    if pattern is not None:
        keep = keep_n_of_m(scores, *pattern)
    else:
        more = jnp.arange(outputs, dtype=jnp.int32) < budget % outputs
        each = budget // outputs + more.astype(jnp.int32)
        keep = keep_largest(scores.T, each).T
    return jnp.where(keep, kernel, 0), keep
