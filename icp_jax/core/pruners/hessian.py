"""The Hessian H of a linear's inputs, and the factor of its inverse that SparseGPT uses."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icp_jax.backend import current as backend
from icp_jax.core.pruners.triangular import inverse_upper
from icp_jax.core.stats import Moments


class Factor(NamedTuple):
    """The factor of a tap, shared by all linears that read it."""

    upper: Float[Array, "i i"]  # U with H⁻¹ = Uᵀ U
    dead: Bool[Array, "i"]  # inputs that are always zero
    added: Float[Array, ""]  # damping added to the diagonal of H


class Damped(NamedTuple):
    """The damped Hessian of a tap."""

    upper: Float[Array, "i i"]  # upper half of H; the rest is zero
    dead: Bool[Array, "i"]  # inputs that are always zero
    added: Float[Array, ""]  # damping added to the diagonal

    @property
    def whole(self) -> Float[Array, "i i"]:
        """H with both halves filled in."""
        return self.upper + jnp.triu(self.upper, 1).T


def damped(moments: Moments, damping: float | Float[Array, ""] = 0.01) -> Damped:
    """H = 2·E[x xᵀ], damped by `damping` times its mean diagonal. Dead inputs get a one."""
    size = moments.second.shape[0]
    chex.assert_shape(moments.second, (size, size))
    h = 2.0 * moments.second
    diagonal = jnp.diagonal(h)
    dead = diagonal == 0
    diagonal = jnp.where(dead, 1.0, diagonal)
    added = jnp.asarray(damping, h.dtype) * jnp.mean(diagonal)
    h = jnp.where(jnp.eye(size, dtype=bool), (diagonal + added)[:, None], jnp.triu(h))
    return Damped(h, dead, added)


@jax.jit
def factor(moments: Moments, damping: float | Float[Array, ""] = 0.01) -> Factor:
    """The factor of the damped H. `upper` contains NaN if H is not positive definite."""
    h, dead, added = damped(moments, damping)
    # batched Cholesky calls in one program can deadlock on the CPU
    invert = (
        jax.custom_batching.sequential_vmap(inverse_upper) if backend.is_host() else inverse_upper
    )
    return Factor(invert(h), dead, added)
