"""Magnitude pruning: the smallest |w| of the tensor go. The baseline that sees no data."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.core.masks import keep_largest, keep_n_of_m
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
    """Zero the `budget` smallest |w| of the kernel, or to `pattern`. Returns (kernel, keep).

    stats is not used; it is there so that all pruners are called alike. Ties go to the lowest
    (input, output).
    """
    chex.assert_rank(kernel, 2)
    if pattern is not None:
        keep = keep_n_of_m(kernel, *pattern)
    else:
        keep = keep_largest(kernel.reshape(1, -1), budget[None]).reshape(kernel.shape)
    return jnp.where(keep, kernel, 0), keep
