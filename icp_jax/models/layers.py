"""Flax Linen modules that the families share: linears with taps, norms, attention.

Every linear's kernel is 2-D `[in, out]`. A linear's input leaves the module through
`self.sow('taps', ...)`, one tap for each distinct input.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

QUERY_CHUNK = 256  # on the CPU: causal attention in chunks of so many queries

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


class Linear(nn.Module):
    """`x @ kernel + bias`, kernel `[in, out]`, computed in the dtype of x."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), jnp.float32
        )
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(x.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32. `affine=False`: no scale, no bias."""

    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x32 = x.astype(jnp.float32)
        mean = jnp.mean(x32, -1, keepdims=True)
        centred = x32 - mean
        variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(x.dtype)


def causal_attention(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t h d"],
    v: Float[Array, "b t h d"],
    scale: float,
) -> Float[Array, "b t h d"]:
    """Causal softmax attention over whole sequences, softmax in float32.

    On a GPU in half precision the fused kernel behind `jax.nn.dot_product_attention`; otherwise
    query chunks that look only at the keys up to their end, which halves the work and keeps the
    score matrix at `[b, h, QUERY_CHUNK, t]`.
    """
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if half and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * jnp.asarray(scale, q.dtype), k, v))
    t = q.shape[2]
    chunks = []
    for start in range(0, t, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, t)
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk",
            q[:, :, start:end],
            k[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        allowed = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1).astype(v.dtype)
        chunks.append(jnp.einsum("bhqk,bhkd->bhqd", weights, v[:, :, :end]))
    out = chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=2)
    return jnp.swapaxes(out, 1, 2)
