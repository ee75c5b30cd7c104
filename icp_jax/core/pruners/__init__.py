"""The pruners: pure functions (kernel, statistics, budget) -> (kernel, keep).

To add one, write a file, add a line to METHODS and an entry to the list of the shared tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from icp_jax.core.pruners.alps import FLOPS, Spectrum, alps, spectrum
from icp_jax.core.pruners.hessian import Factor, factor
from icp_jax.core.pruners.magnitude import magnitude
from icp_jax.core.pruners.sparsegpt import sparsegpt, walk, walk_in_place
from icp_jax.core.pruners.wanda import wanda
from icp_jax.core.stats import Moments

__all__ = [
    "METHODS",
    "SOLVERS",
    "Factor",
    "Method",
    "Spectrum",
    "alps",
    "factor",
    "magnitude",
    "sparsegpt",
    "spectrum",
    "walk",
    "wanda",
    "with_solver",
]


@dataclass(frozen=True)
class Method:
    """A pruner and how a driver uses it.

    prune: the pruner; it may return the lost output energy as a third value, and may donate the
    kernel.
    prepare: (Moments, damping) -> the statistics for `prune`, computed once per tap.
    walks: whether it walks over blocks of inputs, so that the block size applies.
    compensates: whether each block is tuned before it is pruned.
    retunes: whether it is pruned in steps, and its kept weights are tuned after each.
    alpha, beta: defaults of the allocation.
    prepare_flops: FLOPs of `prepare`, divided by inputs³; 0 if it makes no matrices.
    prune_flops: FLOPs of `prune`, divided by inputs² · outputs, without those of the lost energy.
    """

    prune: Callable[..., Any]
    prepare: Callable[[Moments, float], Any]
    walks: bool = False
    compensates: bool = False
    retunes: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    prepare_flops: float = 0.0
    prune_flops: float = 0.0


SPARSEGPT = Method(walk_in_place, factor, walks=True, prepare_flops=2 / 3)

METHODS: dict[str, Method] = {
    "icp": replace(SPARSEGPT, compensates=True, alpha=0.691, beta=0.2),
    "icp+": replace(SPARSEGPT, compensates=True, retunes=True),
    "sparsegpt": SPARSEGPT,
    "alps": Method(alps, spectrum, prepare_flops=9.0, prune_flops=FLOPS),
    "wanda": Method(wanda, lambda moments, damping: moments),
    "magnitude": Method(magnitude, lambda moments, damping: None),
}

SOLVERS = ("sparsegpt", "alps")  # pruners that a method with compensation can use


def with_solver(name: str, solver: str | None) -> Method:
    """The method `name`; if it compensates, its blocks are pruned by `solver`, one of SOLVERS."""
    method = METHODS[name]
    if solver is None or not method.compensates:
        return method
    steps = {f: getattr(method, f) for f in ("compensates", "retunes", "alpha", "beta")}
    return replace(METHODS[solver], **steps)
