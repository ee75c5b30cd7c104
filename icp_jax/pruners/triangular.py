"""Cholesky factor and inverse by halves: nearly all the work is matrix products.

Half of a triangular matrix is zero, and half of a symmetric one is known: products with them are
cut in pieces down to CUT, so that most of that half is never computed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.dot import left_transposed

LEAF = 384  # the largest matrix that LAPACK factors and inverts at once
CUT = 768  # a product with a triangular matrix of at most so many rows is computed whole

dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
dot_transposed = partial(left_transposed, precision=jax.lax.Precision.HIGHEST)


def inverse_cholesky(h: Float[Array, "i i"]) -> Float[Array, "i i"]:
    """L⁻¹ of H = L Lᵀ; of H its lower half is read. Not-a-number where H is not positive definite.

    With H in quarters A, Bᵀ, B, C and K = B L_A⁻ᵀ, L_C is the factor of C - K Kᵀ and the lower
    left quarter of L⁻¹ is -L_C⁻¹ K L_A⁻¹.
    """
    size = h.shape[0]
    if size <= LEAF:
        low = jax.lax.linalg.cholesky(h, symmetrize_input=False)
        identity = jnp.eye(size, dtype=h.dtype)
        return jax.lax.linalg.triangular_solve(low, identity, left_side=True, lower=True)
    half = size // 2
    first = inverse_cholesky(h[:half, :half])
    below = _by_transposed_lower(h[half:, :half], first)
    second = inverse_cholesky(_minus_square(h[half:, half:], below))
    corner = -_lower_by(second, _by_lower(below, first))
    none = jnp.zeros((half, size - half), h.dtype)
    return jnp.block([[first, none], [corner, second]])


def _by_lower(x: Float[Array, "n i"], low: Float[Array, "i i"]) -> Float[Array, "n i"]:
    """x @ low."""
    half = low.shape[0] // 2
    if low.shape[0] <= CUT:
        return dot(x, low)
    left = _by_lower(x[:, :half], low[:half, :half]) + dot(x[:, half:], low[half:, :half])
    return jnp.concatenate([left, _by_lower(x[:, half:], low[half:, half:])], axis=1)


def _by_transposed_lower(x: Float[Array, "n i"], low: Float[Array, "i i"]) -> Float[Array, "n i"]:
    """x @ lowᵀ."""
    half = low.shape[0] // 2
    if low.shape[0] <= CUT:
        return dot(x, low.T)
    right = _by_transposed_lower(x[:, half:], low[half:, half:])
    right = right + dot(x[:, :half], low[half:, :half].T)
    return jnp.concatenate([_by_transposed_lower(x[:, :half], low[:half, :half]), right], axis=1)


def _lower_by(low: Float[Array, "i i"], x: Float[Array, "i n"]) -> Float[Array, "i n"]:
    """low @ x."""
    half = low.shape[0] // 2
    if low.shape[0] <= CUT:
        return dot(low, x)
    bottom = dot(low[half:, :half], x[:half]) + _lower_by(low[half:, half:], x[half:])
    return jnp.concatenate([_lower_by(low[:half, :half], x[:half]), bottom])


def _minus_square(h: Float[Array, "i i"], x: Float[Array, "i n"]) -> Float[Array, "i i"]:
    """h - x xᵀ, right in its lower half."""
    half = h.shape[0] // 2
    if h.shape[0] <= CUT:
        return h - dot(x, x.T)
    low = h[half:, :half] - dot(x[half:], x[:half].T)
    top = jnp.concatenate([_minus_square(h[:half, :half], x[:half]), h[:half, half:]], axis=1)
    bottom = jnp.concatenate([low, _minus_square(h[half:, half:], x[half:])], axis=1)
    return jnp.concatenate([top, bottom])
