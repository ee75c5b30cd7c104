"""Windowed and global attention over a grid of patches, with decomposed relative positions.

The score of query (r, w) and key (h, c) is q·k/√d + q·Rh[r, h] + q·Rw[w, c], with tables Rh and Rw
of the offsets in rows and columns. A few heads and query rows are computed at a time, so that the
scores and biases of all of them are never in memory together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.backend import current as backend
from icp_jax.backend.products import product32
from icp_jax.models.attention import softmax_matmul

SCORES = {"cpu": 1 << 20}  # most scores at a time (but at least one row): fits a CPU's cache
SCORES_ELSEWHERE = 1 << 25


def partition(
    x: Float[AnyArray, "b h w c"], window: int, fill: Float[AnyArray, "c"]
) -> Float[Array, "n s s c"]:
    """Split into n = b * rows * columns windows; padded positions hold `fill`."""
    b, h, w, c = x.shape
    down, right = -h % window, -w % window
    if down or right:
        inside = (np.arange(h + down)[:, None] < h) & (np.arange(w + right) < w)
        padded = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
        x = jnp.where(inside[..., None], padded, fill)
    rows, columns = (h + down) // window, (w + right) // window
    x = x.reshape(b, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, window, window, c)


def unpartition(x: Float[AnyArray, "n s s c"], h: int, w: int) -> Float[Array, "b h w c"]:
    """Join windows to the grid `[b, h, w, c]`, without the padding."""
    _, window, _, c = x.shape
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(-1, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, c)[:, :h, :w]


def relative(table: Float[AnyArray, "l d"], size: int) -> Float[AnyArray, "q k d"]:
    """The table's row for each (query, key) offset; the table is resized if needed."""
    index = np.arange(size)[:, None] - np.arange(size) + size - 1
    return _resize(table, 2 * size - 1)[index]


def _resize(table: Float[AnyArray, "l d"], length: int) -> Float[AnyArray, "m d"]:
    """Linear interpolation of the rows, as torch's with `align_corners=False`."""
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
    q: Float[AnyArray, "b h w n d"],
    k: Float[AnyArray, "b h w n d"],
    v: Float[AnyArray, "b h w n d"],
    rows: Float[AnyArray, "l d"] | None = None,
    columns: Float[AnyArray, "m d"] | None = None,
) -> Float[Array, "b h w n d"]:
    """Softmax attention between all positions with n heads, softmax in float32.

    rows, columns: tables of relative positions, both or neither.
    """
    b, h, w, n, d = q.shape
    q, k, v = (jnp.moveaxis(a, 3, 1).reshape(b * n, h, w, d) for a in (q, k, v))
    k, v = (a.reshape(b * n, h * w, d) for a in (k, v))
    scale = np.float32(d**-0.5).astype(q.dtype)
    to_rows = None if rows is None else relative(rows.astype(q.dtype), h)
    to_columns = None if columns is None else relative(columns.astype(q.dtype), w)
    few, r = _at_once(b * n, h, w)

    def chunk(k, v, q, near):  # q [g, r, w, d] of g heads; near: its rows of to_rows, [r, h, d]
        wide = {"preferred_element_type": jnp.float32}
        flat = (q * scale).reshape(-1, r * w, d)
        scores = product32(flat, k, turned=True)
        if near is not None:
            down = jnp.einsum("grwd,rhd->grwh", q, near, **wide)
            across = jnp.einsum("grwd,wcd->grwc", q, to_columns, **wide)
            bias = down[..., :, None] + across[..., None, :]
            scores = scores + bias.reshape(scores.shape)
        return softmax_matmul(scores, v).reshape(q.shape)

    if (few, r) == (b * n, h):
        out = chunk(k, v, q, to_rows)
    else:
        # recompute each chunk's scores for the gradient instead of storing all
        again = jax.checkpoint(chunk, prevent_cse=False)
        near = None if to_rows is None else to_rows.reshape(h // r, r, h, d)

        def group(part):
            q, k, v = part
            parts = jnp.moveaxis(q.reshape(few, h // r, r, w, d), 1, 0)
            out = jax.lax.map(lambda rows: again(k, v, *rows), (parts, near))
            return jnp.moveaxis(out, 0, 1)

        out = jax.lax.map(group, tuple(a.reshape(-1, few, *a.shape[1:]) for a in (q, k, v)))
    return jnp.moveaxis(out.reshape(b, n, h, w, d), 1, 3)


def _at_once(heads: int, h: int, w: int) -> tuple[int, int]:
    """(heads, query rows) per chunk: divisors within the limit on scores, rows first."""
    most = SCORES.get(backend.name(), SCORES_ELSEWHERE) // (w * h * w)
    r = max(r for r in range(1, h + 1) if h % r == 0 and r <= max(most, 1))
    return max(g for g in range(1, heads + 1) if heads % g == 0 and g * r <= max(most, r)), r
