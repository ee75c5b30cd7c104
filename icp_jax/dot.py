"""Matrix products with a transposed left side, which XLA's CPU backend is slow at as they stand.

It takes up to twice the time of the same product without the transposition
(`benchmarks/bench_dot.py`). On other backends everything is left to XLA.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


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
