"""Streaming second moments of the taps: what the pruners know of a layer's inputs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PANEL = 512  # inputs a panel: only the upper panels of the symmetric sum are computed


class Sums(NamedTuple):
    """Running sums of x xᵀ of one tap."""

    panels: tuple[Float[Array, "p d"], ...]  # row panel k covers the columns from its start on
    rows: Int[Array, ""]  # tokens seen


class Moments(NamedTuple):
    """Second moments of a linear's input."""

    second: Float[Array, "d d"]  # mean of x xᵀ over tokens, float32
    tokens: Int[Array, ""]


def zeros(inputs: int) -> Sums:
    """Empty sums for a tap of so many inputs."""
    starts = range(0, inputs, PANEL)
    panels = tuple(jnp.zeros((min(PANEL, inputs - s), inputs - s), jnp.float32) for s in starts)
    return Sums(panels, jnp.zeros((), jnp.int32))


def add(sums: Sums, x: Float[Array, "n d"], count: Int[Array, ""]) -> Sums:
    """Add rows; `count` of them are real, the others are zero."""
    panels = []
    for k, panel in enumerate(sums.panels):
        start = k * PANEL
        left, right = x[:, start : start + panel.shape[0]], x[:, start:]
        product = jax.lax.dot_general(
            left,
            right,
            (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        panels.append(panel + product)
    return Sums(tuple(panels), sums.rows + count)


@jax.jit
def moments(sums: Sums) -> Moments:
    """The whole symmetric mean from the upper panels."""
    inputs = sums.panels[0].shape[1]
    upper = jnp.concatenate(
        [jnp.pad(p, ((0, 0), (inputs - p.shape[1], 0))) for p in sums.panels], axis=0
    )
    upper = jnp.triu(upper)
    second = upper + jnp.triu(upper, 1).T
    return Moments(second / jnp.maximum(sums.rows, 1).astype(jnp.float32), sums.rows)


def from_inputs(x: Float[Array, "n d"]) -> Moments:
    """The moments of a matrix of inputs, at once. For library use."""
    x = jnp.asarray(x)
    return moments(add(zeros(x.shape[-1]), x.reshape(-1, x.shape[-1]), jnp.int32(x[..., 0].size)))


@jax.jit
def output_error(
    before: Float[Array, "i o"], after: Float[Array, "i o"], m: Moments
) -> Float[Array, ""]:
    """‖(W - Ŵ)ᵀx‖² / ‖Wᵀx‖², in the mean over the calibration tokens."""

    def energy(w):
        product = jnp.matmul(m.second, w, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(w * product)

    return energy(before - after) / jnp.maximum(energy(before), jnp.finfo(jnp.float32).tiny)
