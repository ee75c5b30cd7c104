"""The pruners: pure functions (kernel, statistics, budget) -> (kernel, keep).

Adding one is a file, a line in METHODS, and an entry in the list of the shared tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from icp_jax.core.pruners.hessian import Factor, factor
from icp_jax.core.pruners.magnitude import magnitude
from icp_jax.core.pruners.sparsegpt import sparsegpt, walk, walk_in_place
from icp_jax.core.pruners.wanda import wanda
from icp_jax.core.stats import Moments

__all__ = ["METHODS", "Factor", "Method", "factor", "magnitude", "sparsegpt", "walk", "wanda"]


@dataclass(frozen=True)
class Method:
    """A pruner and what the loop does around it.

    prune: the pruner, or what gives its result and then what the output lost by it; it may use up
    the kernel it is given.
    prepare: (Moments, damping) -> the statistics that `prune` takes, once a tap.
    walks: whether it walks in blocks of inputs, of a size that can be set.
    compensates: whether the next block is tuned after each block.
    alpha, beta: the defaults of the allocation.
    """

    prune: Callable[..., Any]
    prepare: Callable[[Moments, float], Any]
    walks: bool = False
    compensates: bool = False
    alpha: float = 1.0
    beta: float = 0.0


METHODS: dict[str, Method] = {
    "icp": Method(walk_in_place, factor, walks=True, compensates=True, alpha=0.691, beta=0.2),
    "sparsegpt": Method(walk_in_place, factor, walks=True),
    "wanda": Method(wanda, lambda moments, damping: moments),
    "magnitude": Method(magnitude, lambda moments, damping: None),
}
