"""The number of weights to zero in every linear, from the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence

from icp_jax.config import PruneConfig, QuantConfig
from icp_jax.core.choice import Choice
from icp_jax.core.counts import Shapes, Target, counts, shares
from icp_jax.core.masks import parse_pattern
from icp_jax.errors import InputError
from icp_jax.models.spec import Family


def budgets(
    family: Family,
    shapes: Sequence[Shapes],
    config: PruneConfig,
    quant: QuantConfig | None = None,
) -> list[dict[str, int]]:
    """Zeros by block and linear, LEFT where it is left as it is.

    Raises InputError for an infeasible allocation.
    """
    group = None if quant is None else quant.group
    return counts(family, shapes, target(family, config), method=config.method, group=group)


def target(family: Family, config: PruneConfig) -> Target:
    """The target of the settings. Raises InputError for a rearrangement without effect."""
    pattern = parse_pattern(config.pattern)
    unset = config.rearrange is not None and config.beta is None
    if unset and not shares(family, config.method)[1]:
        raise InputError(
            f"prune.rearrange needs prune.beta: set it, it is 0 for {config.method} and this model"
        )
    choice = Choice(
        config.include, config.exclude, config.sparsity_of, config.keep_first, config.keep_last
    )
    return Target(config.sparsity, pattern, config.alpha, config.beta, config.rearrange, choice)
