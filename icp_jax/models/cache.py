"""Keys and values of earlier tokens, so that a block can go on from them one token at a time.

A block finds them in the Flax collection `cache`; without it, it sees whole sequences. Every token
has a slot. Rows may be shorter than the slots: they are padded on the left.

    start   int32 []             slot of the first given token
    first   int32 [b]            slot of each row's first token
    keys    [b, n, slots, d]     absent while the prompt is read, which makes them
    values  [b, n, slots, d]
"""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend.products import product32
from icp_jax.models.attention import causal_attention, softmax_matmul

CACHE = "cache"


def positions(module: nn.Module, length: int) -> Int[Array, "b t"] | None:
    """The positions of `length` given tokens in their rows, 0 for padding; None without a cache."""
    if not module.has_variable(CACHE, "first"):
        return None
    slots = _read(module, "start") + jnp.arange(length, dtype=jnp.int32)
    return jnp.maximum(slots - _read(module, "first")[:, None], 0)


def _read(module: nn.Module, name: str) -> Array:
    return cast(Array, module.get_variable(CACHE, name))


def attention(
    module: nn.Module,
    q: Float[AnyArray, "b t h d"],
    k: Float[AnyArray, "b t n d"],
    v: Float[AnyArray, "b t n d"],
    scale: float,
    window: int | None = None,
    remat: bool = False,
) -> Float[Array, "b t h d"]:
    """`causal_attention` of a block; with a cache, over its tokens and the given ones."""
    if not module.has_variable(CACHE, "first"):
        return causal_attention(q, k, v, scale, window, remat)
    first = _read(module, "first")
    if not module.has_variable(CACHE, "keys"):
        for name, new in (("keys", k), ("values", v)):
            module.put_variable(CACHE, name, jnp.swapaxes(new, 1, 2))
        return causal_attention(q, k, v, scale, window, row_starts=first)
    start = _read(module, "start")
    for name, new in (("keys", k), ("values", v)):
        held = _read(module, name)
        new = jnp.swapaxes(new, 1, 2).astype(held.dtype)
        held = jax.lax.dynamic_update_slice_in_dim(held, new, start, axis=2)
        module.put_variable(CACHE, name, held)
    keys, values = _read(module, "keys"), _read(module, "values")
    return cached_attention(q, keys, values, scale, start, first, window)


def cached_attention(
    q: Float[AnyArray, "b t h d"],
    keys: Float[AnyArray, "b n s d"],
    values: Float[AnyArray, "b n s d"],
    scale: float,
    start: Int[AnyArray, ""],
    first: Int[AnyArray, "b"],
    window: int | None = None,
) -> Float[Array, "b t h d"]:
    """Attention of the queries in slots start, start + 1, ... to the keys of all slots."""
    (b, t, h, d), n = q.shape, keys.shape[1]
    q = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, n, h // n, d)
    q = jnp.transpose(q, (0, 2, 3, 1, 4)).reshape(b, n, -1, d)
    scores = product32(q, keys, turned=True)
    queries = jnp.tile(start + jnp.arange(t, dtype=jnp.int32), h // n)[:, None]
    slots = jnp.arange(keys.shape[2], dtype=jnp.int32)
    allowed = (slots <= queries) & (slots >= first[:, None, None])
    if window is not None:
        allowed &= slots > queries - window
    out = softmax_matmul(jnp.where(allowed[:, None], scores, -jnp.inf), values)
    out = jnp.transpose(out.reshape(b, n, h // n, t, d), (0, 3, 1, 2, 4))
    return out.reshape(b, t, h, d)


def of_block(found: Any) -> dict[str, Array]:
    """The keys and values of a collection `cache`, without the slots."""
    return {name: found[CACHE][name] for name in ("keys", "values")}
