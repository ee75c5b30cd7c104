"""The damping ladder: raise the damping tenfold, up to 1, until the Hessian is positive definite.

At a damping of 1 the smallest eigenvalue of H is at least the mean one, so its condition number
is at most the number of inputs plus one. If that fails, the inputs are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from icp_jax.core.stats import Moments

Prepare = Callable[[Moments, Any], Any]


def raised(damping: Any) -> Any:
    """The next rung, for NumPy and JAX float32. Values that rounding left just below 1 become 1."""
    lib = np if isinstance(damping, np.floating) else jnp
    higher = np.float32(10) * damping
    return lib.where(higher > np.float32(0.99), np.float32(1), higher)[()]


@jax.jit
def all_finite(prepared: Any) -> Bool[Array, ""]:
    """Whether every inexact leaf is finite; True without any."""
    leaves = [x for x in jax.tree.leaves(prepared) if jnp.issubdtype(x, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))


def climb(prepare: Prepare, moments: Moments, damping: Any) -> tuple[Any, Int[Array, ""]]:
    """`prepare(moments, damping)` at the first rung with finite values, or at the last rung.

    prepare: returns values that are not finite if H is not positive definite. Returns (prepared,
    rungs climbed). For use in a trace: the loop runs only after a failure.
    """
    first = prepare(moments, damping)
    if not jax.tree.leaves(first):  # a method without statistics
        return first, jnp.int32(0)

    def failed(carry):
        prepared, now, _ = carry
        return ~all_finite(prepared) & (now < 1)

    def again(carry):
        _, now, rungs = carry
        now = raised(now)
        return prepare(moments, now), now, rungs + 1

    damping = jnp.asarray(damping, jnp.float32)
    prepared, _, rungs = jax.lax.while_loop(failed, again, (first, damping, jnp.int32(0)))
    return prepared, rungs


def climb_on_host(prepare: Prepare, moments: Moments, damping: Any) -> tuple[Any, Any]:
    """`climb` outside a trace, with one factor in memory at a time."""
    now, rungs = np.float32(damping), 0
    while True:
        prepared = prepare(moments, now)
        if now >= 1 or all_finite(prepared):
            return prepared, np.int32(rungs)
        del prepared  # free it before the next is made
        now, rungs = raised(now), rungs + 1


def ladder(damping: float, rungs: int) -> tuple[float, ...]:
    """The dampings tried above the configured one, rounded for printing."""
    tried, now = [], np.float32(damping)
    for _ in range(rungs):
        now = raised(now)
        tried.append(float(f"{now:.6g}"))
    return tuple(tried)
