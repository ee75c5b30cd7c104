"""Perplexity and cross-entropy on fixed windows of tokens, alone or beside another model.

One block is on the device at a time, and then the output layer, see `output`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from icp_jax.errors import InputError
from icp_jax.evaluation import output
from icp_jax.evaluation.divergence import divergence
from icp_jax.evaluation.output import Layout, Weights
from icp_jax.phases import Progress
from icp_jax.streaming import transfer
from icp_jax.streaming.hidden import WholeSource, last_hidden, place
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.storage import Stream


class Perplexity(NamedTuple):
    """How well a model predicts the next tokens. Losses are in nats per token.

    standard_error: of the perplexity, over windows: that of the mean loss, times the perplexity
    (the delta method); None with one window. kl, agreement: see `perplexity`.
    """

    perplexity: float  # exp of the mean loss
    tokens: int  # windows · seq_len
    seq_len: int
    standard_error: float | None
    cross_entropy: float  # mean loss over the predicted tokens
    median_cross_entropy: float
    kl: float | None = None  # mean KL(dense || model); None without another model
    agreement: float | None = None  # share of tokens with the same most likely token


def perplexity(
    source: WholeSource,
    windows: np.ndarray,
    *,
    dtype: str = "auto",
    against: WholeSource | None = None,
    progress: Progress = lambda *event: None,
) -> Perplexity:
    """Measure a model on token windows `[W, T]`, each with T - 1 predictions.

    against: a second model with the same vocabulary, such as the dense one; the KL divergence from
    its predictions is measured too. Memory does not grow with the vocabulary, except for the table
    of the output layer; hidden states that do not fit in half of the free memory are on disk.
    Raises InputError if a loss is not finite.
    """
    if windows.shape[1] < 2:
        raise InputError("windows of one token have no next token: give at least two")
    dtype = compute_dtype(dtype)
    models = [source] if against is None else [source, against]
    kept = place([model.family for model in models], windows)
    parts = [model.family.n_blocks for model in models] + [len(models)]  # the last: output layers
    total = sum(parts) * len(windows)

    def ticker(part: int) -> Callable[[int], None]:
        before = sum(parts[:part]) * len(windows)
        return lambda done: progress(-1, "evaluate", before + done, total, None)

    hidden = [last_hidden(m, windows, dtype, kept, ticker(k)) for k, m in enumerate(models)]
    heads = [output.of(m.family, m.embed(), m.head(), dtype) for m in models]
    return summary(*_predicted(heads, hidden, windows, ticker(len(models))))


def _predicted(
    heads: list[tuple[Layout, Weights]],
    hidden: list[Stream],
    windows: np.ndarray,
    tick: Callable[[int], None],
) -> list[np.ndarray]:
    """The arrays of `summary`. heads, hidden: of the model, and of the one to compare with."""
    found = []
    (layout, weights), *others = heads
    size = transfer.batch_size(*windows.shape)
    for where, (x, *x_others, tokens), _ in transfer.batches([*hidden, windows], size):
        count = where.stop - where.start
        batch = output.losses(layout, weights, x, tokens)
        for (of_dense, dense), dense_x in zip(others, x_others, strict=True):
            batch += divergence(of_dense, layout, dense, weights, dense_x, x, tokens)
        found.append([np.asarray(y)[:count] for y in batch])
        tick(len(heads) * where.stop)
    return [np.concatenate(y) for y in zip(*found, strict=True)]


def summary(
    sums: np.ndarray,
    each: np.ndarray,
    kl: np.ndarray | None = None,
    agreement: np.ndarray | None = None,
) -> Perplexity:
    """The result from the losses of windows, `[W]`, and of tokens, `[W, T - 1]` like the others.

    sums: over each window. Raises InputError.
    """
    count, predicted = each.shape
    of_windows = sums.astype(np.float64)
    mean = np.mean(of_windows) / predicted
    if not np.isfinite(mean):
        raise InputError("the model's loss is not finite: its weights or activations overflow")
    if kl is not None and not np.all(np.isfinite(kl)):
        raise InputError(
            "the KL divergence is not finite: check the weights of the model to compare with"
        )
    error = np.std(of_windows / predicted, ddof=1) / np.sqrt(count) if count > 1 else None
    found = float(np.exp(mean))
    return Perplexity(
        found,
        count * (predicted + 1),
        predicted + 1,
        None if error is None else found * float(error),
        float(mean),
        float(np.median(each)),
        None if kl is None else max(0.0, float(np.mean(kl, dtype=np.float64))),
        None if agreement is None else float(np.mean(agreement)),
    )
