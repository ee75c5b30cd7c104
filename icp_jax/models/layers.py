"""Flax Linen modules shared by the families: linears with taps, and norms.

Every linear's kernel is 2-D `[in, out]`. Blocks expose the inputs of their linears by
`self.sow('taps', ...)`, one tap per distinct input. If the collection is mutable, linears expose
the energy of their outputs, without bias, by `self.sow('energies', ...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


class Affine(NamedTuple):
    """The affine part of a norm: x * scale + bias over the last axis; None is skipped."""

    scale: Float[AnyArray, "d"] | None = None
    bias: Float[AnyArray, "d"] | None = None

    def __call__(self, x: Float[AnyArray, "*b d"]) -> Float[AnyArray, "*b d"]:
        y = x.astype(jnp.float32)
        y = y if self.scale is None else y * self.scale.astype(jnp.float32)
        y = y if self.bias is None else y + self.bias.astype(jnp.float32)
        return y.astype(x.dtype)


WHOLE = Affine()  # the identity


class Linear(nn.Module):
    """`x @ kernel + bias`, kernel `[in, out]`, computed in the dtype of x.

    after: an affine map of x that is folded into the kernel and the bias. If x does not depend on
    params, as after a block's first norm, its gradient is then not computed.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*b i"], after: Affine = WHOLE) -> Float[Array, "*b o"]:
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), jnp.float32
        )
        bias = moved = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if after is not WHOLE:  # fold in float32, whatever the stored dtype
            kernel = kernel.astype(jnp.float32)
        if after.bias is not None:
            shift = after.bias.astype(jnp.float32)
            moved = jnp.matmul(shift, kernel, precision=jax.lax.Precision.HIGHEST)
            bias = moved if bias is None else bias.astype(jnp.float32) + moved
        if after.scale is not None:
            kernel = after.scale.astype(jnp.float32)[:, None] * kernel
        y = jnp.matmul(x, kernel.astype(x.dtype))
        if self.is_mutable_collection("energies"):
            self.sow("energies", "outputs", _energies(y, moved))
        if bias is None:
            return y
        # in float32, so that the bias's gradient sums over all positions in float32
        return (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _energies(y: Float[AnyArray, "b ..."], moved: Float[AnyArray, "o"] | None) -> Float[Array, "b"]:
    out = y.astype(jnp.float32)
    out = out if moved is None else out + moved
    return jnp.sum(jnp.square(out), axis=tuple(range(1, out.ndim)))


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32. `affine=False`: no scale, no bias.

    apart: return the normalised values and the `Affine` separately, without applying it.
    """

    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*b d"], apart: bool = False) -> Any:
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, -1, keepdims=True)
        centred = x32 - mean
        variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        after = WHOLE
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            after = Affine(scale, bias)
        return (y.astype(x.dtype), after) if apart else after(y).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32, with scale and without bias.

    apart: return the normalised values and the `Affine` separately, without applying it.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*b d"], apart: bool = False) -> Any:
        x32 = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        mean = jnp.mean(jnp.square(x32), -1, keepdims=True)
        y, after = x32 * jax.lax.rsqrt(mean + self.epsilon), Affine(scale)
        return (y.astype(x.dtype), after) if apart else after(y).astype(x.dtype)
