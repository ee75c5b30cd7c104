"""Matrix products: their precision, and those with a transposed left side.

XLA's CPU backend is slow at the latter as they stand: they take up to twice the time of the same
product without the transposition (`benchmarks/bench_dot.py`). On other backends all is left to it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def full_precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """While tracing: products of float32 arrays in float32, where a GPU would take TF32 for them.

    The CPU knows nothing else, and products of bfloat16 arrays are left as they are.
    """
    if dtype != "float32" or jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def left_transposed(
    a: Float[Array, "k m"], b: Float[Array, "k n"], precision: jax.lax.Precision | None = None
) -> Float[Array, "m n"]:
    """aᵀ b."""
    left = a.T
    if jax.default_backend() == "cpu":  # laid out before it is used
        left = jax.lax.optimization_barrier(left)
    return jnp.matmul(left, b, precision=precision)


def linear(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ kernel, of one dtype; the kernel's gradient is `left_transposed`.

    In all else (jvp, vmap, higher derivatives) as `jnp.matmul`.
    """
    if jax.default_backend() != "cpu":
        return x @ kernel
    return _linear_p.bind(x, kernel)


def _wrt_x(ct, x, kernel):
    return ct @ kernel.T


def _wrt_kernel(ct, x, kernel):
    return left_transposed(x.reshape(-1, x.shape[-1]), ct.reshape(-1, ct.shape[-1]))


def _shape(x, kernel):
    return jax.core.ShapedArray((*x.shape[:-1], kernel.shape[-1]), x.dtype)


def _batched(operands, dims):
    return jax.vmap(jnp.matmul, dims)(*operands), 0


_linear_p = Primitive("linear")
_linear_p.def_impl(jax.jit(jnp.matmul))
_linear_p.def_abstract_eval(_shape)
mlir.register_lowering(_linear_p, mlir.lower_fun(jnp.matmul, multiple_results=False))
ad.defbilinear(_linear_p, _wrt_x, _wrt_kernel)
batching.primitive_batchers[_linear_p] = _batched
