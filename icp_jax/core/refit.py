"""The best weights for a given mask, from the second moments of a linear's inputs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icp_jax.core.least_squares import ITERATIONS, solve
from icp_jax.core.pruners.hessian import damped
from icp_jax.core.stats import Moments


@partial(jax.jit, static_argnames="iterations")
def refit(
    kernel: Float[Array, "i o"],
    start: Float[Array, "i o"],
    keep: Bool[Array, "i o"],
    moments: Moments,
    damping: float | Float[Array, ""] = 0.01,
    *,
    iterations: int = ITERATIONS,
) -> Float[Array, "i o"]:
    """Minimise tr((W - W₀)ᵀ H (W - W₀)) over the weights that `keep` keeps, from `start`.

    kernel: W₀, before pruning. start: a pruned kernel, whose dtype the result has. H is damped as
    for SparseGPT. No output's error is above the start's.
    """
    h = damped(moments, damping).whole
    w0, w = kernel.astype(jnp.float32), start.astype(jnp.float32)
    return solve(h, w0, jnp.where(keep, w, 0), keep, iterations).astype(start.dtype)
