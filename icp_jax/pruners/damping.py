"""The damping ladder: a Hessian that is not positive definite is damped more, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.stats import Moments


def rungs(damping: float) -> tuple[float, ...]:
    """The dampings to try: the configured one, then ten times more each, 1 the last.

    At 1 the smallest eigenvalue of H is at least the mean one, so its condition number is at most
    the number of inputs plus one: who fails there has inputs that are not finite.
    """
    tried = [float(damping)]
    while tried[-1] < 1:
        tried.append(min(float(f"{10 * tried[-1]:.6g}"), 1.0))
    return tuple(tried)


@jax.jit
def _finite(prepared: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(prepared) if jnp.issubdtype(leaf, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def climb(
    prepare: Callable[[Moments, float], Any], moments: Moments, damping: float
) -> tuple[Any, tuple[float, ...]]:
    """`prepare(moments, damping)` with the least damping of the ladder that gives finite values.

    prepare: gives values that are not finite where H is not positive definite. The damping is
    traced, so that no rung compiles anything. Returns (prepared, rungs climbed above the
    configured damping: the last is in use). Raises LinAlgError where none will do.
    """
    tried = rungs(damping)
    for k, now in enumerate(tried):
        prepared = prepare(moments, now)
        if not jax.tree.leaves(prepared) or _finite(prepared):
            return prepared, tried[1 : k + 1]
        del prepared  # room for the next
    raise np.linalg.LinAlgError(f"not positive definite with a damping of {tried[-1]:g}")
