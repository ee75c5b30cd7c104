"""Scaling of arrays by a power of two, including subnormal numbers.

XLA flushes subnormals to zero when it computes with floats or compares them, at least on the CPU.
Reading their bits is exact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray

TOP = 60  # exponent of the lifted maximum: small weights become normal, squares stay finite


def bits(x: Float[AnyArray, "*s"]) -> Int[Array, "*s"]:
    """The bits of |x|, ordered as |x|: int64 for float64, int32 for narrower floats."""
    x = jnp.asarray(x)
    x = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    return jax.lax.bitcast_convert_type(jnp.abs(x), _integer(x.dtype))


def zeros(x: Float[Array, "*s"]) -> Int[Array, ""]:
    """Number of zeros; subnormals do not count."""
    held = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    # without the barrier LLVM compares floats with zero, not bits
    stored = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(x, held))
    sign = jnp.asarray(1, held)
    return jnp.sum(stored << sign == 0, dtype=jnp.int32)


def lift(x: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Int[Array, ""]]:
    """(x · 2^shift, shift), with an even shift that brings the largest |x| near 2^TOP.

    Exact for values that do not fall below the smallest normal number.
    """
    info, found = jnp.finfo(x.dtype), bits(x)
    bias = 1 - info.minexp
    # a normal number is 1.f · 2^power; a subnormal is its bits times the smallest subnormal
    fraction = found & ((1 << info.nmant) - 1) | (bias << info.nmant)
    subnormal = found >> info.nmant == 0
    power = jnp.where(subnormal, info.minexp - info.nmant, (found >> info.nmant) - bias)
    normal = jax.lax.bitcast_convert_type(fraction, x.dtype)
    significand = jnp.where(subnormal, found.astype(x.dtype), normal)
    size = power + (bits(significand) >> info.nmant) - bias
    shift = (TOP - jnp.max(size)) // 2 * 2
    return jnp.copysign(_times(significand, power + shift), x), shift.astype(jnp.int32)


def lower(x: Float[Array, "*s"], shift: Int[Array, ""]) -> Float[Array, "*s"]:
    """x · 2^-shift, the inverse of `lift`; subnormal results are rounded."""
    info = jnp.finfo(x.dtype)
    shift = shift.astype(_integer(x.dtype))
    size = (bits(x) >> info.nmant) - (1 - info.minexp) - shift
    least = jnp.round(_times(jnp.abs(x), info.nmant - info.minexp - shift))
    small = jax.lax.bitcast_convert_type(least.astype(shift.dtype), x.dtype)
    return jnp.where(size < info.minexp, jnp.copysign(small, x), _times(x, -shift))


def lifted(kernel: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Int[Array, ""]]:
    """`lift` for a solver that computes in float32, from any dtype."""
    w, shift = lift(kernel.astype(jnp.float32) if kernel.dtype.itemsize < 4 else kernel)
    return w.astype(jnp.float32), shift


def lowered(w: Float[Array, "*s"], shift: Int[Array, ""], dtype) -> Float[Array, "*s"]:
    """The inverse of `lifted`, in the given dtype."""
    return lower(w.astype(dtype) if dtype.itemsize > 4 else w, shift).astype(dtype)


def _integer(dtype) -> jnp.dtype:
    return jnp.dtype(f"int{8 * dtype.itemsize}")


def _times(x, power):
    """x · 2^power as two factors, each a normal number."""
    half = power // 2
    return x * _two_to(half, x.dtype) * _two_to(power - half, x.dtype)


def _two_to(power, dtype):
    info = jnp.finfo(dtype)
    stored = jnp.clip(power, info.minexp, -info.minexp) + (1 - info.minexp)
    return jax.lax.bitcast_convert_type(stored << info.nmant, dtype)
