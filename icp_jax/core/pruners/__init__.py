"""The pruners: pure functions (kernel, statistics, budget) -> (kernel, keep).

To add one, write a file, add a line to METHODS and an entry to the list of the shared tests.
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
    """A pruner and how a driver uses it.

    prune: the pruner; it may return the lost output energy as a third value, and may donate the
    kernel.
    prepare: (Moments, damping) -> the statistics for `prune`, computed once per tap.
    walks: whether it walks over blocks of inputs, so that the block size applies.
    compensates: whether each block is tuned before it is pruned.
    retunes: whether its kept weights are tuned once more afterwards.
    alpha, beta: defaults of the allocation.
    """

    prune: Callable[..., Any]
    prepare: Callable[[Moments, float], Any]
    walks: bool = False
    compensates: bool = False
    retunes: bool = False
    alpha: float = 1.0
    beta: float = 0.0


METHODS: dict[str, Method] = {
    "icp": Method(walk_in_place, factor, walks=True, compensates=True, alpha=0.691, beta=0.2),
    "icp+": Method(walk_in_place, factor, walks=True, compensates=True, retunes=True),
    "sparsegpt": Method(walk_in_place, factor, walks=True),
    "wanda": Method(wanda, lambda moments, damping: moments),
    "magnitude": Method(magnitude, lambda moments, damping: None),
}
