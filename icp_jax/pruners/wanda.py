"""Wanda (Sun et al., 2023): the smallest |w|·‖x‖₂ of every output go. No repair."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.masks import keep_largest, keep_n_of_m
from icp_jax.stats import Moments


@partial(jax.jit, static_argnames=("pattern",))
def wanda(
    kernel: Float[Array, "i o"],
    stats: Moments,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """Zero `budget` weights, the same number for every output but for one, or to `pattern`.

    Outputs are compared within themselves (rows of the paper's weight matrix, columns of the
    kernel); what the budget leaves over goes one each to the first outputs. Ties go to the
    lowest input. Returns (kernel, keep).
    """
    norms = jnp.sqrt(jnp.diagonal(stats.second))
    scores = jnp.abs(kernel.astype(jnp.float32)) * norms[:, None]
    if pattern is not None:
        keep = keep_n_of_m(scores, *pattern)
    else:
        outputs = kernel.shape[1]
        budget = jnp.asarray(budget, jnp.int32)
        each = budget // outputs + (jnp.arange(outputs) < budget % outputs).astype(jnp.int32)
        keep = keep_largest(scores.T, each).T
    return jnp.where(keep, kernel, 0), keep
