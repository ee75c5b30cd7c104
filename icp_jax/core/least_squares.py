"""Least squares with a mask, by conjugate gradients for all outputs at once."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

ITERATIONS = 10

_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class State(NamedTuple):
    """Conjugate gradients for each output."""

    w: Float[Array, "i o"]
    residual: Float[Array, "i o"]  # H (W₀ - W), where the mask keeps
    direction: Float[Array, "i o"]
    size: Float[Array, "o"]  # residual · preconditioned residual


def solve(
    h: Float[Array, "i i"],
    w0: Float[Array, "i o"],
    start: Float[Array, "i o"],
    keep: Bool[Array, "i o"],
    iterations: int = ITERATIONS,
) -> Float[Array, "i o"]:
    """Minimise tr((W - W₀)ᵀ H (W - W₀)) over W that is zero where `keep` is False, from `start`.

    start: one such W. The preconditioner is the diagonal of H. No output's error is above the
    start's: an output that does not gain, or is not finite, keeps its start.
    """
    diagonal = jnp.diagonal(h)[:, None]

    def gradient(x):
        return jnp.where(keep, _dot(h, x), 0)

    def step(_, s: State) -> State:
        ahead = gradient(s.direction)
        length = _ratio(s.size, _columns(s.direction, ahead))
        residual = s.residual - length * ahead
        preconditioned = residual / diagonal
        size = _columns(residual, preconditioned)
        direction = preconditioned + _ratio(size, s.size) * s.direction
        return State(s.w + length * s.direction, residual, direction, size)

    residual = gradient(w0 - start)
    direction = residual / diagonal
    begun = State(start, residual, direction, _columns(residual, direction))
    w = jax.lax.fori_loop(0, iterations, step, begun).w
    # the difference of the two errors, which rounds less than each of them
    gain = _columns(w - start, _dot(h, w + start - 2 * w0))
    return jnp.where(gain < 0, w, start)


def _columns(a: Float[Array, "i o"], b: Float[Array, "i o"]) -> Float[Array, "o"]:
    return jnp.sum(a * b, axis=0)


def _ratio(a: Float[Array, "o"], b: Float[Array, "o"]) -> Float[Array, "o"]:
    """a / b; 0 where an output has converged."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
