"""The two-stream correction of QEP (2025): aim at the dense model's outputs from sparse inputs.

A linear in a pruned model sees inputs x̂ where the dense model's are x. Of all kernels, the one that
gives the dense outputs Wᵀx best from x̂ is W + E[x̂ x̂ᵀ]⁻¹ E[x̂ (x - x̂)ᵀ] W. It takes the place of W
before pruning.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.core.pruners.hessian import Factor
from icp_jax.core.pruners.triangular import dot, dot_transposed

STRENGTH = 0.5  # the authors', against overfitting


@jax.jit
def cross_moment(sparse: Float[AnyArray, "*n d"], dense: Float[AnyArray, "*n d"]) -> Array:
    """The mean of x̂ (x - x̂)ᵀ over the tokens, `[d, d]` float32."""
    given = jnp.asarray(sparse, jnp.float32).reshape(-1, sparse.shape[-1])
    wanted = jnp.asarray(dense, jnp.float32).reshape(given.shape)
    return dot_transposed(given, wanted - given) / len(given)


@jax.jit
def corrected(
    kernel: Float[Array, "i o"],
    factor: Factor,
    cross: Float[Array, "i i"],
    strength: float | Float[Array, ""] = STRENGTH,
) -> Float[Array, "i o"]:
    """The kernel moved by `strength` of the way towards the dense outputs.

    factor: of the sparse inputs' H, whose damping is the ridge. cross: see `cross_moment`. For any
    strength from 0 to 1 the outputs are no further from the dense ones than before, on the tokens
    of the moments. Give more damping, up to 1, where there are few tokens.
    """
    w = kernel.astype(jnp.float32)
    # H is 2·E[x̂ x̂ᵀ], and its inverse UᵀU
    step = dot_transposed(factor.upper, dot(factor.upper, 2 * dot(cross, w)))
    return (w + jnp.asarray(strength, jnp.float32) * step).astype(kernel.dtype)
