"""Matrix products: their precision, and those with a transposed left side.

XLA's CPU backend is slow at the latter as they stand, those of many heads above all: they take up
to two and a half times as long as computed here (`benchmarks/bench_dot.py`). On other backends all
is left to it.
"""

from __future__ import annotations

import contextlib
from functools import partial
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
    a: Float[Array, "*s k m"],
    b: Float[Array, "*s k n"],
    precision: jax.lax.Precision | None = None,
) -> Float[Array, "*s m n"]:
    """aᵀ b."""
    left = a.mT
    if jax.default_backend() == "cpu":  # laid out before it is used
        left = jax.lax.optimization_barrier(left)
    return jnp.matmul(left, b, precision=precision)


def product(
    a: Float[Array, "*s m k"], b: Float[Array, "*s k n"], turned: bool = False
) -> Float[Array, "*s m n"]:
    """a @ b, of one dtype; turned: a @ bᵀ, of b `[*s, n, k]`.

    Where the leading axes are alike, b's gradient is `_of_left`; in all else (jvp, vmap, higher
    derivatives, axes that broadcast) as `jnp.matmul`.
    """
    if jax.default_backend() != "cpu" or a.shape[:-2] != b.shape[:-2]:
        return _matmul(a, b, turned=turned)
    return _product_p.bind(a, b, turned=turned)


def product32(
    a: Float[Array, "*s m k"], b: Float[Array, "*s k n"], turned: bool = False
) -> Float[Array, "*s m n"]:
    """`product`, in float32 whatever the dtype of both."""
    if a.dtype == jnp.float32:
        return product(a, b, turned)
    return _matmul(a, b, turned=turned, preferred_element_type=jnp.float32)


def linear(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ kernel, of one dtype: a `product`."""
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _matmul(a, b, *, turned, **options):
    # not by b.mT, which XLA joins to what b was turned by before and lays out apart
    return jnp.einsum("...mk,...nk->...mn" if turned else "...mk,...kn->...mn", a, b, **options)


def _shape(a, b, *, turned):
    return jax.core.ShapedArray((*a.shape[:-1], b.shape[-2 if turned else -1]), a.dtype)


def _wrt_a(ct, a, b, *, turned):
    return _matmul(ct, b, turned=not turned)


def _wrt_b(ct, a, b, *, turned):
    return _of_left(ct, a) if turned else _of_left(a, ct)


def _of_left(left, right):
    """leftᵀ right, or the transpose of rightᵀ left: whichever has less to turn.

    XLA may make the first of the second again, which then gains nothing; not of a sample's
    attention, `[1, heads, ...]`, as compensation has it.
    """
    (rows, m), n = left.shape[-2:], right.shape[-1]
    if n * (rows + m) < rows * m:
        return left_transposed(right, left).mT
    return left_transposed(left, right)


def _batched(operands, dims, *, turned):
    return jax.vmap(partial(_matmul, turned=turned), dims)(*operands), 0


_product_p = Primitive("product")
_product_p.def_impl(jax.jit(_matmul, static_argnames="turned"))
_product_p.def_abstract_eval(_shape)
mlir.register_lowering(_product_p, mlir.lower_fun(_matmul, multiple_results=False))
ad.defbilinear(_product_p, _wrt_a, _wrt_b)
batching.primitive_batchers[_product_p] = _batched
