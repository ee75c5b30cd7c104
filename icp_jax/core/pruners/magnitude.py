"""Magnitude pruning: prune the smallest |w| of a kernel. The baseline without calibration data."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.core.masks import keep_best
from icp_jax.core.pruners.checked import checked


@checked
@partial(jax.jit, static_argnames=("pattern",))
def magnitude(
    kernel: Float[Array, "i o"],
    stats: None,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """Prune the `budget` smallest |w| of the kernel, or to `pattern`. Returns (kernel, keep).

    stats is unused; all pruners share one signature. Ties go to the lowest (input, output).
    """
    chex.assert_rank(kernel, 2)
    keep = keep_best(kernel, budget, pattern)
    return jnp.where(keep, kernel, 0), keep
