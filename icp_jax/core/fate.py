"""How a compensation changed its loss, and whether its result is kept."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.core.hyper import Numbers

DIVERGED = 0.1  # a rise of the loss by more than this share of the targets' mean square


class Fate(IntEnum):
    """The outcome of a compensation; NOT_FINITE and above are undone."""

    NONE = 0  # nothing was tuned
    KEPT = 1
    NOT_FINITE = 2  # a loss was NaN or infinite
    ROSE = 3  # the loss rose far: it diverged
    NO_GAIN = 4  # it rose, but not far: there was too little to repair


class CompensationMetrics(NamedTuple):
    """The loss of a compensation."""

    before: Float[Numbers, "*p"]  # mean over the probe, before the first step
    after: Float[Numbers, "*p"]  # the same after the last step
    epochs: Float[Numbers, "*p E"]  # mean training loss of each epoch
    fate: Int[Numbers, "*p"]  # a Fate


def not_compensated(epochs: int) -> CompensationMetrics:
    """Metrics of a block that was not tuned: NaN and Fate.NONE."""
    nothing = jnp.full((), jnp.nan, jnp.float32)
    losses = jnp.full((epochs,), jnp.nan, jnp.float32)
    return CompensationMetrics(nothing, nothing, losses, jnp.int32(Fate.NONE))


def fate(before, after, finite, square: Float[Array, ""]) -> Int[Array, ""]:
    """The Fate that follows from the losses.

    finite: whether the losses of all steps are finite. square: the targets' mean square.
    """
    finite = finite & jnp.isfinite(after)
    rose = jnp.where(after - before > DIVERGED * square, Fate.ROSE, Fate.NO_GAIN)
    judged = jnp.where(after > before, rose, Fate.KEPT)
    return jnp.where(finite, judged, Fate.NOT_FINITE).astype(jnp.int32)


def mean_square(targets: Float[Numbers, "n *s"]) -> Float[Array, ""]:
    """Mean square of the targets, in float32: the scale for a rise of the loss."""
    return jnp.mean(jnp.square(targets.astype(jnp.float32)))
