"""Matrix products: their precision, and products with a transposed left side.

The latter are slow on XLA's CPU backend (`benchmarks/bench_dot.py`); other backends need no help.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.backend import current as backend


def full_precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """A context for tracing in which float32 products use float32, not a GPU's TF32.

    Does nothing on the CPU or for bfloat16.
    """
    if dtype != "float32" or backend.is_host():
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def left_transposed(
    a: Float[Array, "*s k m"],
    b: Float[Array, "*s k n"],
    precision: jax.lax.Precision | None = None,
) -> Float[Array, "*s m n"]:
    """aᵀ b."""
    left = a.mT
    if backend.is_host():  # materialise the transpose before the product
        left = jax.lax.optimization_barrier(left)
    return jnp.matmul(left, b, precision=precision)


def product32(
    a: Float[Array, "*#s m k"], b: Float[Array, "*#s _ _"], turned: bool = False
) -> Float[Array, "*#s m _"]:
    """a @ b with a float32 result; turned: a @ bᵀ, with b `[*s, n, k]`.

    a and b have one dtype; leading axes broadcast.
    """
    # not b.mT, which XLA merges with earlier transposes of b and copies
    axes = "...mk,...nk->...mn" if turned else "...mk,...kn->...mn"
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
