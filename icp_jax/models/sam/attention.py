"""Attention over a grid of patches, with decomposed relative positions, and its windows.

The score of query (r, w) and key (h, c) is q·k/√d plus q·Rh[r, h] plus q·Rw[w, c], with tables
Rh and Rw of the offsets in rows and columns. Query rows are worked off in chunks: neither the
scores nor the biases of all queries ever lie in memory at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

QUERY_CHUNK = 64  # at most so many queries at once (one row of the grid where that is longer)
GPU_QUERY_CHUNK = 512  # the same on an accelerator; on a CPU the scores should fit its cache


def partition(
    x: Float[Array, "b h w c"], window: int, fill: Float[Array, "c"]
) -> Float[Array, "n s s c"]:
    """Windows side by side, n = b * rows of windows * columns; what is padded holds `fill`."""
    b, h, w, c = x.shape
    down, right = -h % window, -w % window
    if down or right:
        inside = (np.arange(h + down)[:, None] < h) & (np.arange(w + right) < w)
        padded = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
        x = jnp.where(inside[..., None], padded, fill)
    rows, columns = (h + down) // window, (w + right) // window
    x = x.reshape(b, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, window, window, c)


def unpartition(x: Float[Array, "n s s c"], h: int, w: int) -> Float[Array, "b h w c"]:
    """The grid `[b, h, w, c]` of its windows, without the padding."""
    _, window, _, c = x.shape
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(-1, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, c)[:, :h, :w]


def relative(table: Float[Array, "l d"], size: int) -> Float[Array, "q k d"]:
    """The rows of the table for every pair of positions, by offset; resized where it must be."""
    index = np.arange(size)[:, None] - np.arange(size) + size - 1
    return _resize(table, 2 * size - 1)[index]


def _resize(table: Float[Array, "l d"], length: int) -> Float[Array, "m d"]:
    """Linear interpolation between the centres of the rows (no aligned corners)."""
    have = table.shape[0]
    if have == length:
        return table
    ratio = np.float32(have) / np.float32(length)
    centre = np.maximum(
        (np.arange(length, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5), 0
    )
    low = np.floor(centre).astype(np.int32)
    high = np.minimum(low + 1, have - 1)
    weight = (centre - low.astype(np.float32))[:, None].astype(np.float32)
    wide = table.astype(jnp.float32)
    return (wide[low] * (1 - weight) + wide[high] * weight).astype(table.dtype)


def attention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    rows: Float[Array, "l d"] | None = None,
    columns: Float[Array, "m d"] | None = None,
) -> Float[Array, "b h w n d"]:
    """Softmax attention of every position to every position, n heads; softmax in float32.

    rows, columns: the tables of relative positions, both or neither.
    """
    b, h, w, n, d = q.shape
    q, k, v = (jnp.moveaxis(a, 3, 1) for a in (q, k, v))  # [b, n, h, w, d]
    k, v = (a.reshape(b, n, h * w, d) for a in (k, v))
    scale = np.float32(d**-0.5)
    to_rows = None if rows is None else relative(rows.astype(q.dtype), h)
    to_columns = None if columns is None else relative(columns.astype(q.dtype), w)

    def chunk(part):  # q [b, n, r, w, d], its rows of to_rows [r, h, d] -> [b, n, r, w, d]
        q, near = part
        r = q.shape[2]
        flat = (q * scale.astype(q.dtype)).reshape(b, n, r * w, d)
        scores = jnp.einsum("bnqd,bnkd->bnqk", flat, k, preferred_element_type=jnp.float32)
        if near is not None:
            kept = {"preferred_element_type": jnp.float32}
            down = jnp.einsum("bnrwd,rhd->bnrwh", q, near, **kept)
            across = jnp.einsum("bnrwd,wcd->bnrwc", q, to_columns, **kept)
            bias = down[..., :, None] + across[..., None, :]
            scores = scores + bias.reshape(scores.shape)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("bnqk,bnkd->bnqd", weights, v)
        return out.reshape(b, n, r, w, d)

    r = _rows_at_once(h, w)
    if r == h:
        out = chunk((q, to_rows))
    else:
        parts = jnp.moveaxis(q.reshape(b, n, h // r, r, w, d), 2, 0)
        near = None if to_rows is None else to_rows.reshape(h // r, r, h, d)
        # the gradient computes each chunk's scores again rather than keep them all
        out = jax.lax.map(jax.checkpoint(chunk, prevent_cse=False), (parts, near))
        out = jnp.moveaxis(out, 0, 2).reshape(b, n, h, w, d)
    return jnp.moveaxis(out, 1, 3)


def _rows_at_once(h: int, w: int) -> int:
    """The largest divisor of h that keeps a chunk of queries within its limit."""
    most = max(1, (QUERY_CHUNK if jax.default_backend() == "cpu" else GPU_QUERY_CHUNK) // w)
    return max(r for r in range(1, min(most, h) + 1) if h % r == 0)
