"""Causal attention for all families: a fused kernel if there is one, else query chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend import current as backend
from icp_jax.backend.products import product32

QUERY_CHUNK = 256  # queries per chunk without a fused kernel


def softmax_matmul(
    scores: Float[AnyArray, "*#b q k"], v: Float[AnyArray, "*#b k d"]
) -> Float[Array, "*#b q d"]:
    """softmax(scores) @ v, with the softmax in float32.

    The division by the sums comes last, on the smallest array. Its gradient then needs no sum
    over a product of two score matrices, which is slow on XLA's CPU backend.
    """
    most = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
    weights = jnp.exp(scores - most)
    out = product32(weights.astype(v.dtype), v)
    return (out / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)


def _cudnn_takes(head_dim: int) -> bool:
    """Whether cuDNN has an attention kernel with a gradient: NVIDIA GPUs since Ampere."""
    device = backend.device()
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    generation = int(device.compute_capability.split(".")[0])
    return generation >= 8 and head_dim % 8 == 0 and head_dim <= (256 if generation == 9 else 128)


def causal_attention(
    q: Float[AnyArray, "b t h d"],
    k: Float[AnyArray, "b t n d"],
    v: Float[AnyArray, "b t n d"],
    scale: float,
    window: int | None = None,
    remat: bool = False,
    row_starts: Int[AnyArray, "b"] | None = None,
) -> Float[Array, "b t h d"]:
    """Causal softmax attention over whole sequences, with the softmax in float32.

    k, v may have fewer heads than q: each then serves h / n neighbouring heads of q.
    window: query i sees the keys i - window < j <= i; None: all keys j <= i.
    remat: process the chunks in sequence, against all keys, and recompute each chunk's scores for
    the gradient. Less memory, more work.
    row_starts: keys before them are padding, and queries there see only themselves. Unset: none.

    In half precision this is the fused kernel of `jax.nn.dot_product_attention` if cuDNN has one.
    Otherwise each query chunk reads only the keys it can see, which halves the work and keeps the
    score matrix at `[b, h, QUERY_CHUNK, t]`.
    """
    (b, t, h, d), n = q.shape, k.shape[2]
    if window is not None and window >= t:
        window = None
    if q.dtype in (jnp.bfloat16, jnp.float16) and row_starts is None and _cudnn_takes(d):
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, local_window_size=local, implementation="cudnn"
        )
    group = h // n  # query heads per key head, concatenated along the queries
    q = jnp.transpose((q * jnp.asarray(scale, q.dtype)).reshape(b, t, n, group, d), (0, 2, 3, 1, 4))
    k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))

    def attend(q, k, v, start, first=0):  # queries from `start` on, keys from `first` on
        wide = q.reshape(b, n, -1, d)
        scores = product32(wide, k, turned=True)
        queries = jnp.tile(start + jnp.arange(q.shape[3]), group)[:, None]
        keys = jnp.arange(first, first + k.shape[2])
        allowed = keys <= queries
        if window is not None:
            allowed &= keys > queries - window
        if row_starts is not None:
            real = keys >= row_starts[:, None, None, None]
            allowed = (allowed & real) | (keys == queries)
        return softmax_matmul(jnp.where(allowed, scores, -jnp.inf), v).reshape(q.shape)

    if remat:
        size = next(s for s in range(min(QUERY_CHUNK, t), 0, -1) if t % s == 0)
        parts = jnp.moveaxis(q.reshape(b, n, group, t // size, size, d), 3, 0)
        again = jax.checkpoint(attend, prevent_cse=False)
        starts = jnp.arange(0, t, size)
        parts = jax.lax.map(lambda part: again(part[0], k, v, part[1]), (parts, starts))
        out = jnp.moveaxis(parts, 0, 3).reshape(b, n, group, t, d)
    else:
        chunks = []
        for start in range(0, t, QUERY_CHUNK):
            end = min(start + QUERY_CHUNK, t)
            first = 0 if window is None else max(0, start - window + 1)
            part = q[:, :, :, start:end], k[:, :, first:end], v[:, :, first:end]
            chunks.append(attend(*part, start, first))
        out = chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=3)
    return jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(b, t, h, d)
