"""The best weights for a given mask: least squares by conjugate gradients, all outputs at once."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icp_jax.core.pruners.hessian import damped
from icp_jax.core.pruners.triangular import dot
from icp_jax.core.stats import Moments

ITERATIONS = 10


class State(NamedTuple):
    """Conjugate gradients for each output."""

    w: Float[Array, "i o"]
    residual: Float[Array, "i o"]  # H (W₀ - W), where the mask keeps
    direction: Float[Array, "i o"]
    size: Float[Array, "o"]  # residual · preconditioned residual


@partial(jax.jit, static_argnames="iterations")
def refit(
    kernel: Float[Array, "i o"],
    start: Float[Array, "i o"],
    keep: Bool[Array, "i o"],
    moments: Moments,
    damping: float | Float[Array, ""] = 0.01,
    *,
    iterations: int = ITERATIONS,
) -> Float[Array, "i o"]:
    """Minimise tr((W - W₀)ᵀ H (W - W₀)) over the weights that `keep` keeps, from `start`.

    kernel: W₀, before pruning. start: a pruned kernel, whose dtype the result has. H is damped as
    for SparseGPT. No output's error is above the start's.
    """
    h = damped(moments, damping).whole
    w0, w = kernel.astype(jnp.float32), start.astype(jnp.float32)
    return solve(h, w0, jnp.where(keep, w, 0), keep, iterations).astype(start.dtype)


def solve(
    h: Float[Array, "i i"],
    w0: Float[Array, "i o"],
    start: Float[Array, "i o"],
    keep: Bool[Array, "i o"],
    iterations: int = ITERATIONS,
) -> Float[Array, "i o"]:
    """`refit` for a given H, with both halves filled in. start: zero where the mask prunes."""
    diagonal = jnp.diagonal(h)[:, None]

    def gradient(x):
        return jnp.where(keep, dot(h, x), 0)

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
    gain = _columns(w - start, dot(h, w + start - 2 * w0))
    return jnp.where(gain < 0, w, start)


def _columns(a: Float[Array, "i o"], b: Float[Array, "i o"]) -> Float[Array, "o"]:
    return jnp.sum(a * b, axis=0)


def _ratio(a: Float[Array, "o"], b: Float[Array, "o"]) -> Float[Array, "o"]:
    """a / b; 0 where an output has converged."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
