"""Matrix products: their precision, and those with a transposed left side.

XLA's CPU backend is slow at the latter as they stand (`benchmarks/bench_dot.py`). On other
backends all is left to it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax import backend


def full_precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """While tracing: products of float32 arrays in float32, where a GPU would take TF32 for them.

    The CPU knows nothing else, and products of bfloat16 arrays are left as they are.
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
    if backend.is_host():  # laid out before it is used
        left = jax.lax.optimization_barrier(left)
    return jnp.matmul(left, b, precision=precision)


def product32(
    a: Float[Array, "*#s m k"], b: Float[Array, "*#s _ _"], turned: bool = False
) -> Float[Array, "*#s m _"]:
    """a @ b, of one dtype, in float32; turned: a @ bᵀ, of b `[*s, n, k]`.

    Leading axes broadcast.
    """
    # not by b.mT, which XLA joins to what b was turned by before and lays out apart
    axes = "...mk,...nk->...mn" if turned else "...mk,...kn->...mn"
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
