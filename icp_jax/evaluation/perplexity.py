"""Perplexity on fixed windows of tokens, with one block on the device at a time."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.backend.products import full_precision
from icp_jax.core.passes import Apply, Params
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.phases import Progress
from icp_jax.streaming import transfer
from icp_jax.streaming.passes import compute_dtype, embed_tokens, forward, to_device

ROWS = 256  # positions whose logits are in memory at once


class Perplexity(NamedTuple):
    """perplexity: exp of the mean negative log-likelihood; tokens: windows · seq_len."""

    perplexity: float
    tokens: int
    seq_len: int


class WholeSource(Protocol):
    """A source of all parts of a model, the head included."""

    @property
    def family(self) -> Family: ...
    def embed(self) -> Params: ...
    def block(self, t: int) -> Params: ...
    def forget(self) -> None: ...
    def head(self) -> Params: ...


@partial(jax.jit, static_argnums=(0, 1))
def _nll(head, dtype, params, table, x, tokens):
    """Negative log-likelihood of the next token, summed over each window's positions: `[b]`."""
    batch, length = tokens.shape
    pad = -length % min(ROWS, length)
    x = jnp.pad(x.astype(dtype), ((0, 0), (0, pad), (0, 0)))
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, pad + 1)))
    rows = min(ROWS, length)

    def losses_of(part):
        x, target = part
        with full_precision(dtype):
            logits = head.apply({"params": params}, x, table).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    parts = (x.reshape(-1, rows, x.shape[-1]), following.reshape(-1, rows))
    losses = jax.lax.map(losses_of, parts).reshape(batch, length + pad)
    return jnp.sum(losses[:, : length - 1], axis=1)


def perplexity(
    source: WholeSource,
    windows: np.ndarray,
    *,
    dtype: str = "auto",
    progress: Progress = lambda *event: None,
) -> Perplexity:
    """Perplexity of a model on token windows `[W, T]`, each with T - 1 predictions.

    Raises InputError if the loss is not finite.
    """
    family, dtype = source.family, compute_dtype(dtype)
    size = transfer.batch_size(*windows.shape)
    hidden = np.empty((*windows.shape, family.hidden_size), np.float32)
    embed = source.embed()
    transfer.advance(embed_tokens(family, embed), [windows], hidden, size)
    for t in range(family.n_blocks):
        step = partial(forward, Apply(family.block_at(t), dtype), to_device(source.block(t)))
        source.forget()
        tick = partial(_tick, progress, t, family.n_blocks)
        transfer.advance(step, [hidden], hidden, size, tick)
    head = to_device(source.head())
    table = family.head_table(embed)
    table = None if table is None else jax.device_put(table)
    losses = [
        np.asarray(_nll(family.head, dtype, head, table, x, tokens))[: where.stop - where.start]
        for where, (x, tokens), _ in transfer.batches([hidden, windows], size)
    ]
    mean = np.mean(np.concatenate(losses).astype(np.float64)) / (windows.shape[1] - 1)
    if not np.isfinite(mean):
        raise InputError("the model's loss is not finite: its weights or activations overflow")
    return Perplexity(float(np.exp(mean)), int(windows.size), int(windows.shape[1]))


def _tick(progress, t, blocks, done, total):
    """Report progress over all blocks as one bar."""
    progress(-1, "evaluate", t * total + done, blocks * total, None)
